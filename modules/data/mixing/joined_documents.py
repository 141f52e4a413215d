"""The documents of several sources, numbered one source after the other; their ids stay where they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..encoding import COUNTS, Documents


class JoinedArray:
    """Arrays end to end without a copy; a slice lies within one of them."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = parts
        self.bounds = np.cumsum([0, *map(len, parts)])

    def __getitem__(self, wanted: slice) -> np.ndarray:
        part = int(np.searchsorted(self.bounds[1:-1], wanted.start or 0, "right"))
        begin = int(self.bounds[part])
        return self.parts[part][(wanted.start or 0) - begin : wanted.stop - begin]


def join(parts: Sequence[Documents]) -> Documents:
    """In memory is only what there is a number of for each document."""
    if len(parts) == 1:
        return parts[0]
    before = np.cumsum([0, *(int(part.offsets[-1]) for part in parts)])
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("prompt_lengths", "characters", "ended", "lost_bytes")
    }
    shifted = zip(before, parts, strict=False)
    arrays["offsets"] = np.concatenate([[0], *(begin + part.offsets[1:] for begin, part in shifted)])
    shifted = zip(before, parts, strict=False)
    arrays["later_prompts"] = np.concatenate([begin + part.later_prompts for begin, part in shifted])
    counts: dict[str, Any] = {name: sum(getattr(part, name) for part in parts) for name in ("rows", *COUNTS)}
    lost = sum((Counter(part.lost) for part in parts), Counter[str]())
    return Documents(ids=JoinedArray([part.ids for part in parts]), lost=lost, **arrays, **counts)  # type: ignore[arg-type]
