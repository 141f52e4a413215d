"""Classical Chinese and its modern translation, sentence by sentence: github.com/NiuTrans/Classical-Modern.

A chapter is a folder with source.txt and target.txt, whose lines belong together. The repository aligned them by
program; what shows that a pair isn't one is left out here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ....config.verse.han import HAN
from .clone_files import files_named, read_text

Pair = tuple[str, str]

TIMES_LONGER = 5
"""A translation has about 1.5 times as many characters; one that is so much longer (or shorter) isn't of its source."""

SHARED = 0.2
"""Of the different characters of a classical sentence two thirds recur in its translation on average; where fewer than
this do, it isn't of its source."""

_HAN = re.compile(f"[{HAN}]")
_BLANK = re.compile(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])")
"""Blanks stand where the quotation marks were."""


def read_chapters(folders: Sequence[Path], counts: Counter[str]) -> Iterator[tuple[str, list[Pair]]]:
    """(the chapter's path, as 论语/学而篇; its pairs, of which one side may be empty)."""
    for file in files_named(folders, "source.txt"):
        label = file.parent.relative_to(folders[0]).as_posix()
        sides = [read_text(file.parent / name, counts) for name in ("source.txt", "target.txt")]
        lines = [[_BLANK.sub("", " ".join(line.split())) for line in side.rstrip().split("\n")] for side in sides if side]
        if len(lines) < 2 or len(lines[0]) != len(lines[1]):
            counts["chapters whose sides differ in lines"] += 1
            continue
        yield label, list(zip(*lines, strict=True))


def good_pairs(chapter: Sequence[Pair], counts: Counter[str]) -> list[Pair]:
    """Those that translate each other; counts the others by what is wrong with them."""
    counts["pairs read"] += len(chapter)
    if is_moved(chapter):
        counts["pairs of chapters that fit better moved by a line"] += len(chapter)
        return []
    kept = []
    for source, target in chapter:
        shorter, longer = sorted(map(len, (source, target)))
        if not shorter or not _HAN.search(source):
            counts["pairs with an empty side"] += 1
        elif longer > TIMES_LONGER * shorter:
            counts[f"pairs with one side over {TIMES_LONGER} times as long"] += 1
        elif shared(source, target) < SHARED:
            counts[f"pairs that share under {SHARED:.0%} of the characters"] += 1
        else:
            kept.append((source, target))
    return kept


def is_moved(chapter: Sequence[Pair]) -> bool:
    """Whether the sources fit the translations a line before or after them better than their own."""
    sources, targets = [source for source, _ in chapter], [target for _, target in chapter]
    return max(fit(sources[1:], targets), fit(sources, targets[1:])) > fit(sources, targets)


def fit(sources: Sequence[str], targets: Sequence[str]) -> float:
    found = [shared(source, target) for source, target in zip(sources, targets, strict=False)]
    return sum(found) / len(found) if found else 0.0


def shared(source: str, target: str) -> float:
    """How many of the source's different Han characters the target has too."""
    letters = set(_HAN.findall(source))
    return len(letters.intersection(target)) / len(letters) if letters else 0.0
