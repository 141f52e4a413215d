"""What a poem's text is made of: clauses, quatrains, couplets; and the split it belongs to."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from ...config.verse.han import PUNCTUATION, han_only

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_CLAUSE = re.compile(f"[^{PUNCTUATION}]+")
_CLAUSE_WITH_PUNCTUATION = re.compile(f"[^{PUNCTUATION}]+[{PUNCTUATION}]*")


def clauses(text: str) -> list[str]:
    """The stretches of `text` between punctuation marks: the lines of a regular poem."""
    return _CLAUSE.findall(text)


def split_of(text: str) -> Split:
    """The split a poem belongs to, from the SHA-1 of its Han characters alone.

    5 in 1,000 go to test and 5 to validation. Neither punctuation nor the order of rows moves a poem.
    """
    bucket = int(hashlib.sha1(f"v1|{han_only(text)}".encode()).hexdigest(), 16) % 1000
    return "test" if bucket < 5 else "validation" if bucket < 10 else "train"


def cut_quatrains(text: str) -> list[str]:
    """Consecutive rows of four lines, with their punctuation, of a poem all of 5- or all of 7-character lines.

    Lines left over at the end are dropped; any other poem gives none.
    """
    if not _is_regular(clauses(text)):
        return []
    lines = _CLAUSE_WITH_PUNCTUATION.findall(text)
    return ["".join(lines[start : start + 4]) for start in range(0, len(lines) - 3, 4)]


def cut_couplets(text: str) -> list[tuple[str, str]]:
    """Lines 3-4 and 5-6, without punctuation, of an eight-line poem of equal 5- or 7-character lines.

    These are the two couplets of regulated verse (律诗) that its rules want parallel. Any other poem gives none.
    """
    lines = clauses(text)
    return [(lines[2], lines[3]), (lines[4], lines[5])] if len(lines) == 8 and _is_regular(lines) else []


def _is_regular(lines: list[str]) -> bool:
    """Whether all lines are of 5, or all of 7 characters."""
    return {len(line) for line in lines} in ({5}, {7})
