"""Copies and near-copies among poems: editions overlap, and a split by row would leak a quarter of the test set."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cleaning import Poem
from .verse import clauses, han_only

SHARED_CLAUSES = 2  # with fewer in common, two poems only share a set phrase such as 行路难

Ids = NDArray[np.int64]


class Clusters(NamedTuple):
    """Poems that are one work: `kept` holds the first of each cluster, in order."""

    kept: list[Poem]
    near_copies: int
    largest: int


def drop_exact_copies(poems: list[Poem]) -> list[Poem]:
    """The first of the poems that agree in all Han characters."""
    first = {han_only(poem.text): poem for poem in reversed(poems)}
    return [poem for poem in poems if first[han_only(poem.text)] is poem]


def drop_near_copies(poems: list[Poem]) -> Clusters:
    """One poem, the first, of each cluster of near-copies.

    Near-copies share at least two clauses and half the distinct clauses of the one with fewer; clusters are
    the connected components (union-find), so a chain of near-copies is one cluster.
    """
    clause_ids: dict[str, int] = {}
    of_poem: list[int] = []
    owners: list[int] = []
    for index, poem in enumerate(poems):
        distinct = dict.fromkeys(clauses(poem.text))
        of_poem.extend(clause_ids.setdefault(clause, len(clause_ids)) for clause in distinct)
        owners.extend([index] * len(distinct))
    sizes = np.bincount(owners, minlength=len(poems)) if owners else np.zeros(len(poems), dtype=np.int64)
    left, right = _near_pairs(np.array(of_poem, dtype=np.int64), np.array(owners, dtype=np.int64), sizes)
    roots = _components(len(poems), left.tolist(), right.tolist())
    kept = [poem for index, poem in enumerate(poems) if roots[index] == index]
    return Clusters(kept, len(poems) - len(kept), max(Counter(roots).values(), default=0))


def leak_rate(train: list[Poem], test: list[Poem]) -> float:
    """Share of the test poems that have a relative in train.

    A relative is one train poem that shares at least two clauses with the test poem, or at least half of the
    test poem's distinct clauses.
    """
    wanted = {clause for poem in test for clause in clauses(poem.text)}
    holders: dict[str, list[int]] = defaultdict(list)
    for index, poem in enumerate(train):
        for clause in wanted.intersection(clauses(poem.text)):
            holders[clause].append(index)
    leaked = 0
    for poem in test:
        distinct = set(clauses(poem.text))
        shared = Counter(index for clause in distinct for index in holders.get(clause, ()))
        most = max(shared.values(), default=0)
        leaked += most >= SHARED_CLAUSES or 2 * most >= len(distinct)
    return leaked / len(test) if test else 0.0


def _near_pairs(clause_ids: Ids, owners: Ids, sizes: Ids) -> tuple[Ids, Ids]:
    """The pairs of near-copies, the lower index first; clause_ids[i] stands in poem owners[i]."""
    order = np.argsort(clause_ids, kind="stable")
    owners = owners[order]
    counts = np.unique(clause_ids, return_counts=True)[1]
    starts = np.cumsum(counts) - counts
    count = len(sizes)
    pairs = [np.zeros(0, dtype=np.int64)]
    # Clauses held by equally many poems go together, so that numpy forms their pairs in one go.
    for holders in np.unique(counts[counts > 1]).tolist():
        groups = owners[starts[counts == holders][:, None] + np.arange(holders)]
        first, second = np.triu_indices(holders, 1)
        pairs.append((groups[:, first] * count + groups[:, second]).ravel())
    pair, shared = np.unique(np.concatenate(pairs), return_counts=True)
    left, right = np.divmod(pair, max(count, 1))
    near = (shared >= SHARED_CLAUSES) & (2 * shared >= np.minimum(sizes[left], sizes[right]))
    return left[near], right[near]


def _components(count: int, left: list[int], right: list[int]) -> list[int]:
    """For each of `count` items the lowest index that it is connected to."""
    parents = list(range(count))
    for one, other in zip(left, right, strict=True):
        low, high = sorted((_root(parents, one), _root(parents, other)))
        parents[high] = low
    return [_root(parents, index) for index in range(count)]


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index
