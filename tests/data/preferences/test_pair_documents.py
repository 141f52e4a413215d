"""Pairs as documents and micro-batches: as fine-tuning and prompts have them, with one prompt, never parted."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from modules.config.preferences.preference import PreferenceConfig
from modules.data.encoding import encode_rows
from modules.data.packing import make_step, split_step
from modules.data.preferences.pair_packing import PairBatch, Pairs, pairs_of
from modules.data.rows import load_rows
from modules.model.loss import IGNORED
from modules.tokenizer.tokenizer import Tokenizer

ROWS = [
    {"prompt": "白日依山尽，", "chosen": "黄河入海流。", "rejected": "春眠"},
    {"prompt": "床前明月光，", "chosen": "疑是", "rejected": "地上霜。举头望明月，低头思故乡"},
    {"prompt": "春", "chosen": "眠不觉晓，处处闻啼鸟。", "rejected": "山"},
]


def pairs(tokenizer: Tokenizer, loss: str = "dpo", length: int = 90) -> Pairs:
    documents = encode_rows(load_rows(ROWS, pairs=True), tokenizer, length)
    found = pairs_of({"train": documents}, PreferenceConfig(loss))["train"]  # type: ignore[arg-type]
    assert isinstance(found, Pairs)
    return found


@pytest.mark.parametrize("template", [None, "问：{src_txt}\n答："])
def test_each_answer_is_a_document_as_fine_tuning_has_it(template: str | None, tokenizer: Tokenizer) -> None:
    own = tokenizer.with_prompt_template(template)
    found = pairs(own)
    for side, name in enumerate(("chosen", "rejected")):
        texts = {"src_txt": [row["prompt"] for row in ROWS], "tgt_txt": [row[name] for row in ROWS]}
        expected = encode_rows(datasets.Dataset.from_dict(texts), own, 90)
        for number in range(len(ROWS)):
            document = 2 * number + side
            ids = found.ids[found.offsets[document] : found.offsets[document + 1]]
            assert ids.tolist() == expected.ids_of(number).tolist()
            assert found.prompt_lengths[document] == expected.prompt_lengths[number]
    assert len(found) == 3
    assert found.lengths.tolist() == [int(np.diff(found.offsets)[2 * n : 2 * n + 2].sum()) - 2 for n in range(3)]
    assert found.trained_tokens.tolist() == [len(r["chosen"]) + len(r["rejected"]) + 2 for r in ROWS]


def test_of_a_conversation_the_last_answer_alone_is_trained_on(tokenizer: Tokenizer) -> None:
    own = tokenizer.with_prompt_template("{src_txt}\n")
    talk = [
        {"role": "user", "content": "春"},
        {"role": "assistant", "content": "眠"},
        {"role": "user", "content": "再来"},
    ]
    rows = load_rows([{"prompt": talk, "chosen": "不觉晓", "rejected": "山"}], pairs=True)
    found = encode_rows(rows, own, 90)
    assert own.decode(found.ids_of(0)[found.prompt_lengths[0] : -1].tolist()) == "不觉晓"
    assert own.decode(found.ids_of(0)[: found.prompt_lengths[0]].tolist()).endswith("眠再来\n")
    assert not len(found.later_prompts)


def test_a_long_prompt_is_cut_alike_for_both_answers(tokenizer: Tokenizer) -> None:
    own = tokenizer.with_prompt_template("{src_txt}\n")
    rows = [{"prompt": "春" * 50, "chosen": "眠" * 5, "rejected": "山" * 20}]
    found = encode_rows(load_rows(rows, pairs=True), own, 31)
    first, second = (found.ids_of(n) for n in range(2))
    prompt = int(found.prompt_lengths[0])
    assert prompt == found.prompt_lengths[1] == 32 - 21
    assert first[:prompt].tolist() == second[:prompt].tolist()
    assert (len(first), len(second)) == (prompt + 6, prompt + 21)
    assert (found.rows_cut, found.tokens_cut, found.ended.tolist()) == (1, 2 * (52 - prompt), [1, 1])


def test_a_pair_is_in_one_micro_batch_however_a_step_is_split(tokenizer: Tokenizer) -> None:
    found = pairs(tokenizer)
    for tokens in (1, 50, 10_000):
        groups = split_step(np.arange(3), found.lengths, tokens)
        assert sorted(np.concatenate(groups).tolist()) == [0, 1, 2]
    step = make_step(found, np.arange(3), 10_000)
    (batch,) = step.micro_batches
    assert isinstance(batch, PairBatch)
    assert sorted(batch.layout.lengths) == batch.layout.lengths  # neighbours of one length share a call
    tokens_of = np.split(batch.input_ids[0].numpy(), np.cumsum(batch.layout.lengths)[:-1])
    for side, name in enumerate(("chosen", "rejected")):
        for place, pair in zip(batch.sides[side].tolist(), batch.documents.tolist(), strict=True):
            assert tokenizer.decode(tokens_of[place].tolist()) == ROWS[pair]["prompt"] + ROWS[pair][name]
    assert bool(batch.in_answer.all())


def test_orpo_learns_the_chosen_texts_whole(tokenizer: Tokenizer) -> None:
    (batch,) = make_step(pairs(tokenizer, "orpo"), np.arange(3), 10_000).micro_batches
    assert isinstance(batch, PairBatch)
    answers = sum(len(row["chosen"]) + 1 for row in ROWS)
    assert batch.chosen_tokens == answers + sum(len(row["prompt"]) for row in ROWS)
    assert int(batch.in_answer.sum()) == answers + sum(len(row["rejected"]) + 1 for row in ROWS)
    assert int((batch.labels != IGNORED).sum()) == len(batch.trained) == len(batch.document_of)


def test_an_empty_share_has_no_pair(tokenizer: Tokenizer) -> None:
    found = pairs(tokenizer)
    steps = [make_step(found, np.arange(1), 50, rank, 2) for rank in range(2)]
    counts = [[batch.pairs for batch in step.micro_batches if isinstance(batch, PairBatch)] for step in steps]
    assert counts == [[1], [0]]
