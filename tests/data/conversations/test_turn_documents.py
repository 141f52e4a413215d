"""Which ids a conversation becomes, and which of them are trained on."""

from __future__ import annotations

import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.data.encoding import Documents, encode_rows, stored_documents
from modules.data.packing import collate, in_order
from modules.data.rows import load_rows
from modules.evaluation.likelihood import score
from modules.model.decoder import Decoder
from modules.model.loss import IGNORED
from modules.tokenizer.prompt_template import encode_turns, ids_of, read_messages
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer

TEMPLATE = "问：{src_txt}\n答："
TALK = [
    {"role": "system", "content": "用五言"},
    {"role": "user", "content": "春"},
    {"role": "assistant", "content": "不觉晓"},
    {"role": "user", "content": "山"},
    {"role": "assistant", "content": "依山尽，"},
]


@pytest.fixture(scope="module")
def tuned(tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer.with_prompt_template(TEMPLATE)


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def talks(*conversations: list[dict[str, str]]) -> datasets.Dataset:
    return load_rows({"messages": list(conversations)})


def labels_of(documents: Documents, index: int = 0) -> list[int]:
    return collate(documents, np.array([index])).labels[0].tolist()


def test_the_labels_of_two_turns_by_hand(tuned: Tokenizer) -> None:
    documents = encode_rows(talks(TALK), tuned, 90)
    ids = [0, *tuned.encode("问：用五言\n春\n答："), *tuned.encode("不觉晓"), 0]
    ids += [*tuned.encode("问：山\n答："), *tuned.encode("依山尽，"), 0]
    assert documents.ids.tolist() == ids
    first, second = len(tuned.encode("问：用五言\n春\n答：")), len(tuned.encode("问：山\n答："))
    expected = [IGNORED] * first + [*tuned.encode("不觉晓"), 0] + [IGNORED] * second + [*tuned.encode("依山尽，"), 0]
    assert labels_of(documents) == expected
    assert documents.trained_tokens.tolist() == [4 + 5]
    assert (documents.characters.tolist(), documents.ended.tolist()) == ([3 + 4], [2])
    batch = collate(documents, np.array([0]))
    assert (batch.trained_tokens, batch.ends, batch.characters) == (9, 2, 7)
    assert len(batch.trained) == 9


def test_a_conversation_of_one_turn_is_a_pair(tuned: Tokenizer) -> None:
    pairs = datasets.Dataset.from_dict({"src_txt": ["春", "山水"], "tgt_txt": ["不觉晓", "清"]})
    both = [encode_rows(rows, tuned, 90) for rows in (pairs, talks(said("春", "不觉晓"), said("山水", "清")))]
    for name in ("ids", "offsets", "prompt_lengths", "characters", "lost_bytes", "lengths", "trained_tokens"):
        assert getattr(both[0], name).tolist() == getattr(both[1], name).tolist()
    assert [labels_of(both[0], row) for row in (0, 1)] == [labels_of(both[1], row) for row in (0, 1)]


def test_training_sees_what_the_servers_chat_shows(tuned: Tokenizer) -> None:
    documents = encode_rows(talks(TALK), tuned, 90)
    asked = ids_of(encode_turns(read_messages(TALK[:-1]), tuned))
    assert documents.ids[: len(asked)].tolist() == asked


def test_the_likelihood_of_a_conversation_by_hand(decoder: Decoder, tuned: Tokenizer) -> None:
    rows = talks(TALK, said("春", "山"))
    expected = []
    for talk in (TALK, said("春", "山")):
        turns = encode_turns(read_messages(talk), tuned)
        ids = ids_of(turns)
        trained, at = [], 0
        for prompt, answer in turns:
            trained += range(at + len(prompt), at + len(prompt) + len(answer))
            at += len(prompt) + len(answer)
        with torch.no_grad():
            logits = decoder(torch.tensor([ids[:-1]]))[0]
        losses = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        expected.append(float(sum(losses[place - 1] for place in trained)))
    found = score(decoder, tuned, rows)
    assert found.nll == pytest.approx(expected, rel=1e-5)
    assert (found.tokens.tolist(), found.characters.tolist()) == ([9, 2], [9, 2])
    assert found.perplexity.value == pytest.approx(math.exp(sum(expected) / 11), rel=1e-5)


TEXT = st.text("春眠不觉晓山a\n", min_size=1, max_size=12).filter(lambda text: not text.isspace())
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5)


@given(st.lists(TURNS, min_size=1, max_size=6))
@settings(max_examples=20)
def test_neighbours_in_a_batch_change_nothing(tuned: Tokenizer, given_turns: list[list[tuple[str, str]]]) -> None:
    rows = talks(*(said(*(text for turn in turns for text in turn)) for turns in given_turns))
    documents = encode_rows(rows, tuned, 400)
    alone = [labels_of(encode_rows(rows.select([row]), tuned, 400)) for row in range(len(rows))]
    batch = collate(documents, np.arange(len(rows)))
    parts = np.split(batch.labels[0].numpy(), documents.lengths.cumsum()[:-1])
    assert [part.tolist() for part in parts] == alone
    assert batch.layout.lengths == documents.lengths.tolist()
    for labels, turns, trained in zip(alone, given_turns, documents.trained_tokens, strict=True):
        ids = [label for label in labels if label != IGNORED]
        assert tuned.decode(ids) == "".join(answer for _, answer in turns)
        assert ids.count(tuned.end_of_text_id) == len(turns)
        assert len(ids) == trained


def test_packed_conversations_are_scored_as_alone(decoder: Decoder, tuned: Tokenizer) -> None:
    rows = talks(TALK, said("春", "山"), said("山", "水", "春", "花"))
    together = score(decoder, tuned, rows, max_batch_tokens=500).nll
    assert together == pytest.approx([score(decoder, tuned, rows.select([row])).nll[0] for row in range(3)], rel=1e-5)
    assert len(in_order(encode_rows(rows, tuned, 90), 500)) == 1


@given(TURNS, st.integers(13, 70), st.booleans())
def test_a_conversation_that_is_too_long(
    tuned: Tokenizer, turns: list[tuple[str, str]], length: int, told: bool
) -> None:
    talk = said(*(text for turn in turns for text in turn))
    system = [{"role": "system", "content": "用五言"}] if told else []
    whole = ids_of(encode_turns(read_messages([*system, *talk]), tuned))
    documents = encode_rows(talks([*system, *talk]), tuned, length)
    assert documents.lengths[0] <= length
    assert documents.trained_tokens[0] >= 1
    assert documents.rows_cut == (len(whole) > length + 1)
    assert documents.tokens_cut == len(whole) - len(documents.ids)
    suffixes = [ids_of(encode_turns(read_messages([*system, *talk[n:]]), tuned)) for n in range(0, len(talk), 2)]
    fitting = [ids for ids in suffixes if len(ids) <= length + 1]
    if fitting:  # the latest turns, and the system message
        assert documents.ids.tolist() == fitting[0]
        assert documents.ended.tolist() == [len(turns) - suffixes.index(fitting[0])]
        return
    if told:  # of which a part makes room for the question
        return
    pair = {"src_txt": [turns[-1][0]], "tgt_txt": [turns[-1][1]]}
    same = encode_rows(datasets.Dataset.from_dict(pair), tuned, length)
    assert documents.ids.tolist() == same.ids.tolist()
    assert labels_of(documents) == labels_of(same)
    assert (documents.characters.tolist(), documents.ended.tolist()) == (same.characters.tolist(), same.ended.tolist())


def test_what_is_kept_on_disk_is_the_same(tuned: Tokenizer, tmp_path: Path) -> None:
    rows = load_rows({"messages": [said("春", "山"), TALK] * 3000})  # several batches
    kept = stored_documents(rows, tuned, 90, "cut", tmp_path)
    again = stored_documents(rows, tuned, 90, "cut", tmp_path)
    made = encode_rows(rows, tuned, 90)
    for documents in (kept, again):
        assert documents.later_prompts.tolist() == made.later_prompts.tolist()
        assert documents.trained_tokens.tolist() == made.trained_tokens.tolist() == [2, 9] * 3000
        assert labels_of(documents, 5999) == labels_of(made, 1)
    assert kept.trained_tokens.sum() == made.trained_tokens.sum()


def test_lost_characters_of_answers_alone_are_charged(tuned: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"春山水：问答"]) + "\n"
    )
    (tmp_path / "configuration.json").write_text("{}")
    bert = load_tokenizer(tmp_path).with_prompt_template("问：{src_txt}答：")
    documents = encode_rows(talks(said("春花", "山月", "水", "春日日")), bert, 90)
    assert documents.lost_bytes.tolist() == [3 + 6]  # 月 and twice 日
    assert dict(documents.lost) == {"花": 1, "月": 1, "日": 2}
    assert documents.text_characters == 8
