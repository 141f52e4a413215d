"""What a vocabulary's merges are learnt from."""

from __future__ import annotations

from modules.tokenizer.tokenizer import train_tokenizer
from modules.tokenizer.vocabulary_training import LONGEST_WORD, word_splitter


def test_merges_are_learnt_from_pieces_of_bounded_length() -> None:
    """The time to learn from one grows with its square. Shorter ones, and their vocabulary, are what they were."""
    signs, text = ["，", " ", "\n", "《", "+"], "春眠不觉晓" * 1000
    splitter = word_splitter()
    pieces = [piece for piece, _ in splitter.pre_tokenize_str(text)]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) == LONGEST_WORD < len(text)
    line = "".join("处处闻啼鸟" * 200 + sign for sign in signs)
    found = [piece for piece, _ in splitter.pre_tokenize_str(line)]
    assert found == [part for sign in signs for part in ("处处闻啼鸟" * 200, sign)]


def test_merges_of_a_row_without_signs_are_those_of_its_parts() -> None:
    whole, parts = ("".join("春眠不觉晓" for _ in range(4 * LONGEST_WORD)), ["春眠不觉晓" * LONGEST_WORD] * 4)
    first, second = (train_tokenizer(texts, "bpe", 300) for texts in ([whole], parts))
    assert first.token_bytes == second.token_bytes
    assert first.decode(first.encode(whole)) == whole
