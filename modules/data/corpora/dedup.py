"""Copies and near-copies among texts: editions overlap, and a split by row would leak a quarter of the test set."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .verse import clauses

SHARED_UNITS = 2  # with fewer in common, two poems only share a set phrase such as 行路难

STRETCH = 4
"""Letters: two poems of 20 characters that differ in two still have half of their stretches in common."""

SHARED_STRETCHES = 6
"""Fewer are a set phrase, 9 letters long: shorter texts are no near copies of anything."""

NEAR_SHARE = 0.5
"""Of the stretches of the shorter of two texts: with so many in common they are near copies."""

SKETCH = 32
"""Stretches that stand for a text: those with the smallest hashes (Broder 1997). Fewer are compared whole."""

KEYS, NEIGHBOURS = 8, 4
"""Texts are compared if they share one of their first so many stretches, each with the next so many that have it."""

MOST_TEXTS = 2_000_000
"""More of them aren't compared: for so many it takes more than a minute, and 1.2 GB of memory."""

_NONE = np.uint32(2**32 - 1)
"""Where a text has fewer stretches."""

Ids = NDArray[np.int64]
_NO_WORD = re.compile(r"[\W_]")


def near_copies(texts: Sequence[str], units: Callable[[str], Iterable[str]] = clauses, share: float = 0.5) -> list[int]:
    """For each text the index of the first one of its cluster of near-copies, often its own.

    Near-copies share at least two units and `share` of the distinct units of the one with fewer; clusters are
    the connected components, so a chain of near-copies is one cluster. Poems are compared by clauses;
    those of prose are too often set phrases, so it is compared by shingles.
    """
    unit_ids: dict[str, int] = {}
    of_text: list[int] = []
    owners: list[int] = []
    for index, text in enumerate(texts):
        distinct = dict.fromkeys(units(text))
        of_text.extend(unit_ids.setdefault(unit, len(unit_ids)) for unit in distinct)
        owners.extend([index] * len(distinct))
    left, right = _near_pairs(np.array(of_text, np.int64), np.array(owners, np.int64), len(texts), share)
    lowest: list[int] = _first_connected(left, right, len(texts)).tolist()
    return lowest


def near_copies_of_many(batches: Iterable[Sequence[str]]) -> Ids:
    """`near_copies` by stretches of letters, for millions of texts: by their sketches, so that a text with just half of
    its stretches in common with another may pass, and so does one that is a small part of another."""
    sketches = np.concatenate([np.zeros((0, SKETCH), np.uint32), *map(_sketches, filter(None, batches))])
    left, right = _candidates(sketches)
    near = np.zeros(len(left), bool)
    for part in np.split(np.arange(len(left)), range(100_000, len(left), 100_000)):
        near[part] = _alike(sketches[left[part]], sketches[right[part]])
    return _first_connected(left[near], right[near], len(sketches))


def near_copies_found(asked: str, alike: Mapping[str, Ids] | None) -> dict[str, Any]:
    """How many rows are near copies of an earlier one, and how many held-out rows of a training row."""
    if alike is None:
        why = "near_copies=ignore" if asked == "ignore" else f"over {MOST_TEXTS:,} rows"
        return {"near copies": f"not looked for: {why}"}
    sizes = Counter(number for numbers in alike.values() for number in numbers.tolist())
    train = set(alike["train"].tolist())
    also = {name: sum(n in train for n in numbers.tolist()) for name, numbers in alike.items() if name != "train"}
    facts = {"rows": sizes.total() - len(sizes), "most of one text": max(sizes.values()), "also in train": also}
    return {"near copies": facts}


def shingles(text: str, length: int = 8) -> set[str]:
    """All stretches of `length` letters, digits and Han characters (Broder 1997); a shorter text is one itself."""
    text = _NO_WORD.sub("", text)
    return {text[start : start + length] for start in range(max(1, len(text) - length + 1))}


def leak_rate(train: Sequence[str], test: Sequence[str]) -> float:
    """Share of the test texts that have two clauses, or half of their distinct ones, in common with one of train."""
    wanted = {clause for text in test for clause in clauses(text)}
    holders: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(train):
        for clause in wanted.intersection(clauses(text)):
            holders[clause].append(index)
    leaked = 0
    for text in test:
        distinct = set(clauses(text))
        shared = Counter(index for clause in distinct for index in holders.get(clause, ()))
        most = max(shared.values(), default=0)
        leaked += most >= SHARED_UNITS or 2 * most >= len(distinct)
    return leaked / len(test) if test else 0.0


def _first_connected(left: Ids, right: Ids, count: int) -> Ids:
    """For each of `count` texts the lowest of those that the pairs connect it to."""
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    lowest: Ids = first[component]
    return lowest


def _sketches(texts: Sequence[str]) -> NDArray[np.uint32]:
    """(texts, SKETCH): the smallest hashes of each text's stretches, in order."""
    cleaned = [_NO_WORD.sub("", text).ljust(STRETCH, "\0") for text in texts]
    lengths = np.array([len(text) for text in cleaned])
    owners, ends = np.arange(len(texts)).repeat(lengths), lengths.cumsum().repeat(lengths)
    codes = np.frombuffer("".join(cleaned).encode("utf-32-le"), "<u4").astype(np.uint64)
    hashes = np.zeros(len(codes) - STRETCH + 1, np.uint64)
    for offset in range(STRETCH):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + len(hashes)]
    hashes = ((hashes ^ (hashes >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32)
    inside = np.arange(len(hashes)) + STRETCH <= ends[: len(hashes)]
    found = _distinct(owners[: len(hashes)][inside].astype(np.uint64) << np.uint64(32) | hashes[inside])
    owners = (found >> np.uint64(32)).astype(np.int64)
    rank = np.arange(len(found)) - np.searchsorted(owners, np.arange(len(texts)))[owners]
    sketches = np.full((len(texts), SKETCH), _NONE, np.uint32)
    kept = rank < SKETCH
    sketches[owners[kept], rank[kept]] = found[kept].astype(np.uint32)
    return sketches


def _candidates(sketches: NDArray[np.uint32]) -> tuple[Ids, Ids]:
    """Pairs of texts that may be near copies, the lower index first."""
    keys = sketches[:, :KEYS]
    there = keys != _NONE
    owners, keys = np.broadcast_to(np.arange(len(keys))[:, None], keys.shape)[there], keys[there]
    order = np.argsort(keys, kind="stable")
    owners, keys = owners[order], keys[order]
    pairs = [np.zeros(0, np.int64)]
    for gap in range(1, NEIGHBOURS + 1):
        same = keys[gap:] == keys[:-gap]
        pairs.append(_distinct(owners[:-gap][same] * len(sketches) + owners[gap:][same]))
    left, right = np.divmod(_distinct(np.concatenate(pairs)), max(len(sketches), 1))
    return left, right


def _alike(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which of the texts with these sketches are near copies."""
    both = np.sort(np.concatenate([left, right], 1), 1)
    shared = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] != _NONE)).sum(1)
    smaller = np.minimum((left != _NONE).sum(1), (right != _NONE).sum(1))
    found: NDArray[np.bool_] = (shared >= SHARED_STRETCHES) & (shared >= NEAR_SHARE * smaller)
    return found


def _distinct(numbers: Any) -> Any:
    """Sorted; np.unique finds them by a table, and takes fifteen times as long."""
    numbers = np.sort(numbers)
    return numbers[np.diff(numbers, prepend=~numbers[:1]) != 0]


def _near_pairs(unit_ids: Ids, owners: Ids, count: int, share: float) -> tuple[Ids, Ids]:
    """The pairs of near-copies among `count` texts, the lower index first; unit_ids[i] stands in text owners[i]."""
    sizes = np.bincount(owners, minlength=count)
    order = np.argsort(unit_ids, kind="stable")
    owners = owners[order]
    counts = np.unique(unit_ids, return_counts=True)[1]
    starts = np.cumsum(counts) - counts
    pairs = [np.zeros(0, dtype=np.int64)]
    # Units held by equally many poems go together, so that numpy forms their pairs in one go.
    for holders in np.unique(counts[counts > 1]).tolist():
        groups = owners[starts[counts == holders][:, None] + np.arange(holders)]
        first, second = np.triu_indices(holders, 1)
        pairs.append((groups[:, first] * count + groups[:, second]).ravel())
    pair, shared = np.unique(np.concatenate(pairs), return_counts=True)
    left, right = np.divmod(pair, max(count, 1))
    near = (shared >= SHARED_UNITS) & (shared >= share * np.minimum(sizes[left], sizes[right]))
    return left[near], right[near]
