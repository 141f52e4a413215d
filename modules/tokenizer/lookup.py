"""Code point → id: a table look-up in numpy, for tokenizers to which most characters are a token of their own."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

CODE_POINTS = 0x110000
UNKNOWN = -1

Ids: TypeAlias = NDArray[np.int32]
Counts: TypeAlias = NDArray[Any]
Encode: TypeAlias = Callable[[Sequence[str]], list[list[int]]]


def ranges(starts: Counts, lengths: Counts) -> Counts:
    """[start, start + 1, … start + length - 1] of each pair, end to end."""
    ends = lengths.cumsum()
    first: Counts = (starts - (ends - lengths)).repeat(lengths)
    return first + np.arange(len(first), dtype=np.int64)


def end_to_end(lists: Sequence[Sequence[int]]) -> tuple[Ids, Counts]:
    """Lists end to end, and the length of each."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    return np.fromiter((item for items in lists for item in items), np.int32, int(lengths.sum())), lengths


def code_points(texts: Iterable[str]) -> NDArray[np.uint32]:
    """Of all texts, end to end; half a surrogate pair counts as one."""
    return np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)


class CharacterTable:
    """Ids of texts by look-up; a text with any character that isn't in the table goes to the full tokenizer."""

    def __init__(self, ids: Mapping[str, int], encode: Encode) -> None:
        """ids: character → id, for characters that become just this id whatever stands beside them."""
        self.table = np.full(CODE_POINTS, UNKNOWN, np.int32)
        self.table[[ord(character) for character in ids]] = list(ids.values())
        self.encode = encode

    def __call__(self, texts: Sequence[str]) -> tuple[Ids, Counts]:
        """(ids end to end, number of ids of each text)."""
        ids = self.table[code_points(texts)]
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        unknown = np.flatnonzero(ids == UNKNOWN)
        if not len(unknown):
            return ids, lengths
        ends = lengths.cumsum()
        rows = np.unique(np.searchsorted(ends, unknown, side="right"))
        replaced, counts = end_to_end(self.encode([texts[row] for row in rows]))
        starts = ends - lengths
        starts[rows] = len(ids) + counts.cumsum() - counts
        lengths[rows] = counts
        return np.concatenate([ids, replaced])[ranges(starts, lengths)], lengths


def standalone(tokens: Iterable[str], encode: Encode) -> dict[str, int]:
    """The characters among BERT's tokens that are one token, the same one, wherever they stand: 汉字 and punctuation.

    Asked of the tokenizer itself, alone and between letters; letters, digits and marks join their neighbours.
    """
    categories = ("Lo", "Po", "Ps", "Pe", "Pi", "Pf", "Pd")
    candidates = [token for token in tokens if len(token) == 1 and unicodedata.category(token) in categories]
    (letter,) = encode(["a"])
    alone = encode(candidates)
    between = encode([f"a{character}a" for character in candidates])
    found = zip(candidates, alone, between, strict=True)
    return {token: ids[0] for token, ids, context in found if len(ids) == 1 and context == [*letter, *ids, *letter]}
