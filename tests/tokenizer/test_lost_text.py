"""What a tokenizer doesn't give back, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modules.tokenizer.lost_text import LostText, kept_sign, loses, lost_in_texts, lost_named, lost_separator, vanishes
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer


@pytest.fixture
def bert(tmp_path: Path) -> Tokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "，", "。", "春", "夏", "hello", "e", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    return load_tokenizer(tmp_path)


def lost(texts: list[str], tokenizer: Tokenizer) -> tuple[list[int], dict[str, int]]:
    found, every = lost_in_texts(texts, *tokenizer.encode_flat(texts), tokenizer)
    return found.tolist(), dict(every)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("春，夏。", ""),
        ("鱻龘春", "鱻龘"),
        ("春\n夏", "\n"),
        ("春 夏\t", " \t"),
        ("春\x00夏\u200b", "\x00\u200b"),
        ("Hello", "H"),
        ("é", "é"),
        ("hello hello", ""),  # the decoder puts spaces back between words
        ("ａ", "ａ"),  # full-width
        ("春春鱻", "鱻"),
        ("", ""),
    ],
)
def test_what_does_not_come_back_is_counted(bert: Tokenizer, text: str, missing: str) -> None:
    bytes_lost, characters = lost([text, "春"], bert)
    assert bytes_lost == [len(missing.encode()), 0]
    assert characters == {character: missing.count(character) for character in missing}
    assert loses(text, bert) == bool(missing)


def test_a_tokenizer_that_spells_bytes_loses_nothing(tokenizer: Tokenizer) -> None:
    for lossless in (tokenizer, train_tokenizer(["春眠不觉晓"] * 9, "bpe", 400)):
        assert lost(["鱻\n Hé\x00😀"], lossless) == ([0], {})
        assert not loses("\n", lossless)


def test_a_separator_that_vanishes_is_named(bert: Tokenizer, tokenizer: Tokenizer) -> None:
    assert lost_separator("{src_txt}\n", bert) == "\n"
    assert lost_separator("问：{src_txt} \n ", bert) == " \n "
    assert lost_separator("{src_txt}\n。", bert) is None
    assert lost_separator("{src_txt}", bert) is None
    assert lost_separator("{src_txt}\n", tokenizer) is None
    assert lost_separator("{src_txt}鱻\n", bert) == "鱻\n"  # nothing tells [UNK] from other unknown text
    assert vanishes("鱻", bert)
    assert not vanishes("鱻。", bert)
    assert not vanishes("\n", tokenizer)


def test_a_sign_that_the_tokenizer_keeps_is_found(bert: Tokenizer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert kept_sign(bert) == kept_sign(tokenizer) == "。"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##a", "白日", "日"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    assert kept_sign(load_tokenizer(tmp_path)) == "日"


def test_what_is_lost_of_some_texts_is_named(bert: Tokenizer, tokenizer: Tokenizer) -> None:
    assert lost_named(["春鱻", "\n鱻"], bert) == "'鱻', '\\n'"
    assert lost_named(["123456"], bert) == "'1', '2', '3', '4', '5', …"
    assert lost_named(["春"], bert) is None
    assert lost_named(["鱻\n"], tokenizer) is None


def test_the_share_and_the_most_frequent_are_told() -> None:
    lost = LostText({"\n": 3, "鱻": 12, "a": 1, "b": 1, "c": 1, "d": 1}, 200)
    assert (lost.count, lost.share) == (19, 0.095)
    assert str(lost) == "19 of 200 characters (9.50%): '鱻' 12×, '\\n' 3×, 'a' 1×, 'b' 1×, 'c' 1×, …"


def test_ids_of_many_texts_are_matched_to_their_texts(bert: Tokenizer) -> None:
    texts = ["春", "鱻", "夏", "Hello", "鱻鱻"]
    ids, lengths = bert.encode_flat(texts)
    assert lost_in_texts(texts, ids, lengths, bert)[0].tolist() == [0, 3, 0, 1, 6]
    assert isinstance(lengths, np.ndarray)
