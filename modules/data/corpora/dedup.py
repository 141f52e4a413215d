"""Copies and near-copies among texts: editions overlap, and a split by row would leak a quarter of the test set."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .poem_cleaning import Poem
from .verse import clauses, han_only

SHARED_UNITS = 2  # with fewer in common, two poems only share a set phrase such as 行路难

Ids = NDArray[np.int64]
_NO_WORD = re.compile(r"[\W_]")


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
    """One poem, the first, of each cluster of near-copies."""
    roots = near_copies([poem.text for poem in poems])
    kept = [poem for index, poem in enumerate(poems) if roots[index] == index]
    return Clusters(kept, len(poems) - len(kept), max(Counter(roots).values(), default=0))


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
    sizes = np.bincount(owners, minlength=len(texts)) if owners else np.zeros(len(texts), dtype=np.int64)
    left, right = _near_pairs(np.array(of_text, dtype=np.int64), np.array(owners, dtype=np.int64), sizes, share)
    return _components(len(texts), left, right)


def shingles(text: str, length: int = 8) -> set[str]:
    """All stretches of `length` letters, digits and Han characters (Broder 1997); a shorter text is one itself."""
    text = _NO_WORD.sub("", text)
    return {text[start : start + length] for start in range(max(1, len(text) - length + 1))}


def leak_rate(train: Sequence[str], test: Sequence[str]) -> float:
    """Share of the test texts that have a relative in train.

    A relative is one train text that shares at least two clauses with the test text, or at least half of the
    test text's distinct clauses.
    """
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


def _near_pairs(unit_ids: Ids, owners: Ids, sizes: Ids, share: float) -> tuple[Ids, Ids]:
    """The pairs of near-copies, the lower index first; unit_ids[i] stands in text owners[i]."""
    order = np.argsort(unit_ids, kind="stable")
    owners = owners[order]
    counts = np.unique(unit_ids, return_counts=True)[1]
    starts = np.cumsum(counts) - counts
    count = len(sizes)
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


def _components(count: int, left: Ids, right: Ids) -> list[int]:
    """For each of `count` items the lowest index that it is connected to."""
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    lowest: list[int] = first[component].tolist()
    return lowest
