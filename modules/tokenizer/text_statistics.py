"""What rows are made of, for a look before training: how long they are, and what the tokenizer makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .tokenizer import Tokenizer


@dataclass(frozen=True)
class TextStatistics:
    characters: np.ndarray
    """(rows,): of each row."""
    tokens: np.ndarray
    """(rows,): of each row, without those at its ends."""
    frequency: dict[str, int]
    """Character → how often it stands in the rows, the most frequent first."""
    unknown: list[str]
    """Characters without a token of their own (spelt in bytes, or [UNK]), the most frequent first."""

    @property
    def tokens_per_character(self) -> float:
        return float(self.tokens.sum() / max(1, self.characters.sum()))

    @property
    def coverage(self) -> float:
        """The share of the text whose characters have a token of their own."""
        missing = sum(self.frequency[character] for character in self.unknown)
        return 1 - missing / max(1, int(self.characters.sum()))


def describe_texts(texts: Iterable[str], tokenizer: Tokenizer) -> TextStatistics:
    rows = list(texts)
    frequency = dict(Counter("".join(rows)).most_common())
    return TextStatistics(
        characters=np.array([len(row) for row in rows]),
        tokens=np.array([len(ids) for ids in tokenizer.encode_batch(rows)]),
        frequency=frequency,
        unknown=[character for character in frequency if not has_token(character, tokenizer)],
    )


def has_token(character: str, tokenizer: Tokenizer) -> bool:
    ids = tokenizer.encode(character)
    return len(ids) == 1 and tokenizer.decode(ids) == character
