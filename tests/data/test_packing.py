"""Rows → documents → steps → micro-batches: nothing lost, nothing twice, nothing padded."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.config.data import DataConfig
from modules.data.datamodule import TextDataModule
from modules.data.encoding import Documents, encode_rows
from modules.data.packing import collate, make_step, plan_steps, split_step
from modules.data.quarantine import DataError
from modules.data.splits import hold_out, load_splits
from modules.model.loss import IGNORED
from modules.tokenizer.tokenizer import Tokenizer

TEXTS = st.lists(st.text("山水春风，。ab", min_size=1, max_size=40), min_size=1, max_size=30)


def predictions(documents: Documents, tokenizer: Tokenizer) -> str:
    """The text that is trained on, read off the labels; end-of-text as ⏎."""
    labels = collate(documents, np.arange(len(documents))).labels[0]
    kept = labels[labels != IGNORED].tolist()
    return "".join("⏎" if token == tokenizer.end_of_text_id else tokenizer.decode([token]) for token in kept)


def test_every_character_and_the_end_are_trained_on(tokenizer: Tokenizer) -> None:
    rows = datasets.Dataset.from_dict({"src_txt": ["白日依山尽", "春"]})
    documents = encode_rows(rows, tokenizer, sequence_length=32)
    assert predictions(documents, tokenizer) == "白日依山尽⏎春⏎"
    batch = collate(documents, np.array([0, 1]))
    assert batch.layout.lengths == [6, 2]
    assert batch.input_ids[0].tolist()[0] == tokenizer.end_of_text_id  # each text starts after one
    assert (batch.trained_tokens, batch.characters, batch.ends) == (8, 6, 2)


def test_a_pass_is_filled_up_with_what_is_not_trained_on(tokenizer: Tokenizer) -> None:
    documents = encode_rows(datasets.Dataset.from_dict({"src_txt": ["春眠不觉晓", "花"]}), tokenizer, 64)
    plain, padded = (collate(documents, np.arange(2), multiple) for multiple in (1, 32))
    count = plain.input_ids.shape[1]
    assert padded.input_ids.shape == padded.labels.shape == (1, 32)
    assert torch.equal(padded.input_ids[:, :count], plain.input_ids)
    assert torch.equal(padded.labels[:, :count], plain.labels)
    assert bool((padded.labels[:, count:] == IGNORED).all())
    assert torch.equal(padded.trained, plain.trained)
    assert plain.trained.tolist() == list(range(count))
    assert padded.layout.lengths[:2] == plain.layout.lengths == [6, 2]
    assert max(padded.layout.lengths) == 6  # a longer one might have no position
    assert sum(padded.layout.lengths) == 32


def test_a_prompt_is_not_trained_on(tokenizer: Tokenizer) -> None:
    rows = datasets.Dataset.from_dict({"src_txt": ["白日依山尽"], "tgt_txt": ["黄河入海流"]})
    documents = encode_rows(rows, tokenizer.with_prompt_template("{src_txt}，"), sequence_length=32)
    assert predictions(documents, tokenizer) == "黄河入海流⏎"
    assert (documents.characters.sum(), documents.trained_tokens.sum()) == (5, 6)


@given(TEXTS, st.integers(1, 12))
@settings(deadline=None)
def test_splitting_trains_on_each_token_once(tokenizer: Tokenizer, texts: list[str], length: int) -> None:
    rows = datasets.Dataset.from_dict({"src_txt": texts})
    documents = encode_rows(rows, tokenizer, length, "split")
    assert predictions(documents, tokenizer) == "".join(text + "⏎" for text in texts)
    assert documents.lengths.max() <= length
    assert documents.characters.sum() == sum(map(len, texts))
    assert documents.ended.sum() == len(texts)
    assert documents.rows_split == sum(len(tokenizer.encode(text)) + 1 > length for text in texts)


@given(TEXTS, st.integers(6, 20))
@settings(deadline=None)
def test_cutting_is_counted_and_leaves_something_to_train_on(
    tokenizer: Tokenizer, texts: list[str], length: int
) -> None:
    rows = datasets.Dataset.from_dict({"src_txt": texts, "tgt_txt": texts[::-1]})
    documents = encode_rows(rows, tokenizer.with_prompt_template("{src_txt}"), length, "split")
    assert len(documents) == len(texts)  # a pair is never split
    assert documents.lengths.max() <= length
    assert documents.trained_tokens.min() >= 1
    sizes = [len(tokenizer.encode(a)) + len(tokenizer.encode(b)) + 1 for a, b in zip(texts, texts[::-1], strict=True)]
    assert documents.rows_cut == sum(size > length for size in sizes)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 120), st.integers(0, 9))
def test_a_plan_takes_every_document_once(lengths: list[int], budget: int, seed: int) -> None:
    array = np.array(lengths)
    order = np.random.default_rng(seed).permutation(len(array))
    for plan in (plan_steps(array, order, 7, None), plan_steps(array, order, None, budget)):
        assert np.concatenate(plan).tolist() == order.tolist()
        assert all(len(step) for step in plan)
        for step in plan:
            groups = split_step(step, array, budget)
            assert sorted(np.concatenate(groups).tolist()) == sorted(step.tolist())
            assert all(array[group].sum() <= budget or len(group) == 1 for group in groups)


@given(
    st.lists(st.text("山水春风", min_size=1, max_size=40), min_size=1, max_size=9),
    st.integers(1, 99),
    st.integers(1, 4),
)
@settings(deadline=None)
def test_ranks_share_a_step(tokenizer: Tokenizer, texts: list[str], budget: int, ranks: int) -> None:
    """Every document on one of them; as many micro-batches on each, though some have fewer documents than others."""
    documents = encode_rows(datasets.Dataset.from_dict({"src_txt": texts}), tokenizer, 64)
    steps = [make_step(documents, np.arange(len(documents)), budget, rank, ranks) for rank in range(ranks)]
    assert len({len(step.micro_batches) for step in steps}) == 1
    assert {step.trained_tokens for step in steps} == {int(documents.trained_tokens.sum())}
    batches = [batch for step in steps for batch in step.micro_batches]
    assert sum(batch.trained_tokens for batch in batches) == documents.trained_tokens.sum()
    assert all((batch.labels != IGNORED).sum() == batch.trained_tokens for batch in batches)
    lengths = [length for batch in batches if batch.trained_tokens for length in batch.layout.lengths]
    assert sorted(lengths) == sorted(documents.lengths.tolist())


def test_groups_are_few_and_alike() -> None:
    lengths = np.full(100, 41)  # 4,100 tokens: just over one group of 4,096
    assert [len(group) for group in split_step(np.arange(100), lengths, 4096)] == [50, 50]


def test_poems_are_packed_without_padding(tokenizer: Tokenizer, rows: datasets.Dataset) -> None:
    documents = encode_rows(rows, tokenizer, 128, "split")
    step = make_step(documents, np.arange(len(documents)), micro_batch_tokens=512)
    positions = sum(batch.input_ids.numel() for batch in step.micro_batches)
    assert positions == documents.lengths.sum() == step.trained_tokens
    budgets = len(step.micro_batches) * 512
    assert positions / budgets > 0.85  # how full the passes are


def test_epochs_are_shuffled_differently_and_repeatably(tokenizer: Tokenizer, rows: datasets.Dataset) -> None:
    def first_ids(seed: int) -> list[int]:
        module = TextDataModule({"train": rows, "validation": rows}, tokenizer, DataConfig(), batch_size=8, seed=seed)
        return next(iter(module.train_dataloader())).micro_batches[0].input_ids[0].tolist()

    assert first_ids(1) == first_ids(1) != first_ids(2)


def test_validation_rows_are_held_out_where_none_are_given(tmp_path: Path) -> None:
    source = {"src_txt": [f"第{n}首" for n in range(50)]}
    splits = load_splits(DataConfig(validation_fraction=0.1), seed=0, source=source)
    train, validation = splits["train"]["src_txt"], splits["validation"]["src_txt"]
    assert len(validation) == 5
    assert sorted([*train, *validation]) == sorted(source["src_txt"])
    assert load_splits(DataConfig(validation_fraction=0.1), 0, source)["validation"]["src_txt"][:] == validation[:]
    with pytest.raises(DataError, match="1 rows and data.validation_fraction=0.1 leave none for validation"):
        load_splits(DataConfig(validation_fraction=0.1), 0, {"src_txt": ["一"]})
    with pytest.raises(DataError, match="give data.path"):
        load_splits(DataConfig(), 0)


def test_hold_out_keeps_the_order_of_rows() -> None:
    rows = datasets.Dataset.from_dict({"src_txt": [str(n) for n in range(20)]})
    train, validation = hold_out(rows, 0.25, seed=3)
    for part in (train, validation):
        numbers = [int(text) for text in part["src_txt"]]
        assert numbers == sorted(numbers)
