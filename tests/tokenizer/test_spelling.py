"""Tokens spelt one by one are the text, and each is said to begin where it does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.tokenizer.spelling import TokenSpeller, spelling
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

DATA = Path(__file__).parents[1] / "files"


def spelt(tokenizer: Tokenizer, ids: list[int], at: int = 0) -> tuple[list[str], list[int]]:
    speller = TokenSpeller(tokenizer, at)
    found = [speller.push(token) for token in ids]
    return [text for text, _ in found], [start for _, start in found]


def test_bytes_of_a_character_begin_where_it_does(tokenizer: Tokenizer) -> None:
    """驫 has no token."""
    ids = tokenizer.encode("春驫a")
    assert spelt(tokenizer, ids, 5) == (
        ["春", "bytes:\\xe9", "bytes:\\xa9", "bytes:\\xab", "a"],
        [5, 6, 6, 6, 7],
    )


@given(st.lists(st.integers(1, 256), max_size=8))
def test_every_byte_begins_in_the_character_that_it_becomes(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Whether bytes make characters or not: what comes before a token has as many characters as its offset."""
    text = tokenizer.decode(ids)
    _, starts = spelt(tokenizer, ids)
    assert starts == sorted(starts)
    for number, start in enumerate(starts):
        # The characters that are certain before the token, or one more, which it doesn't continue.
        decoder = tokenizer.incremental_decoder()
        certain = "".join(map(decoder.push, ids[:number]))
        assert text.startswith(certain)
        assert start - len(certain) in ((0, 1) if decoder.pending else (0,))
        first = tokenizer.token_bytes[ids[number]][0]
        if not 0x80 <= first < 0xC0:  # begins a character of its own
            assert start == len(tokenizer.decode(ids[:number]))


@given(st.text("ab 春花驫é\n😀", max_size=12))
def test_whole_tokens_together_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    for one in (tokenizer, train_tokenizer(["春花 ab春花"] * 3, "bpe", 300)):
        tokens, starts = spelt(one, one.encode(text))
        for token, start in zip(tokens, starts, strict=True):
            assert token.startswith("bytes:") or text.startswith(token, start)
        if not any(token.startswith("bytes:") for token in tokens):
            assert "".join(tokens) == text


def test_what_adds_nothing_to_a_text_has_its_name(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.end_of_text_id, *tokenizer.encode("春"), tokenizer.end_of_text_id]
    assert spelt(tokenizer, ids) == (["<|endoftext|>", "春", "<|endoftext|>"], [0, 0, 1])
    assert spelling(tokenizer, 10**6) == "token_id:1000000"


def test_where_a_tokenizer_loses_text_its_own_offsets_count() -> None:
    bert = load_tokenizer(DATA / "modelscope" / "base")
    text = "床 É\n前驫明"
    found = zip(map(bert.token, bert.encode(text)), bert.positions(text) or [], strict=True)
    assert list(found) == [("床", 0), ("[UNK]", 2), ("前", 4), ("[UNK]", 5), ("明", 6)]


@pytest.mark.parametrize("text", ["白日依山尽，黄河入海流。", "今天 天气很好！", ""])
def test_words_cut_by_jieba_are_found_again(text: str) -> None:
    pytest.importorskip("jieba")
    tokenizer = load_tokenizer(DATA / "modelscope" / "megatron_tp1")
    positions = tokenizer.positions(text)
    assert positions is not None
    assert len(positions) == len(tokenizer.encode(text))
    for token, start in zip(tokenizer.encode(text), positions, strict=True):
        piece = tokenizer.decode([token]).strip()
        assert text.startswith(piece, start) or not piece or text[start] == " "
