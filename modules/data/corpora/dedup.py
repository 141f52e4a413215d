"""Copies and near-copies among texts: editions overlap, and a split by row would leak a quarter of the test set."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .verse import clauses

SHARED_UNITS = 2  # with fewer in common, two poems only share a set phrase such as 行路难

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
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(texts), len(texts)))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    lowest: list[int] = first[component].tolist()
    return lowest


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
