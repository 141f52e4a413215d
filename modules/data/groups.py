"""How rows are divided into splits, so that none of those that hang together, being cut from one text or about one
passage, is in another split than the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha1
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .arrow import text_batches
from .conversations.message_rows import users_texts
from .corpora.verse import SPLITS
from .quarantine import DataError

if TYPE_CHECKING:
    import datasets

GROUP = "group"
"""The column with a label that rows of one group share."""

MIN_GROUPS = 10
"""Of fewer, resampling draws little else than the same ones again, and whole ones may be half of the rows."""

FEW_ALIKE = 10
"""Near copies of one another that stay in one split however small the splits are."""

Numbers = NDArray[np.int64]


def has_group(label: str) -> bool:
    """Whether a row with this label has a group; without one it stands alone."""
    return label.strip() not in ("", "null")


def group_labels(rows: datasets.Dataset) -> Iterator[str]:
    for batch in text_batches(rows.select_columns([GROUP])):
        yield from batch[GROUP]


def group_numbers(rows: datasets.Dataset) -> Numbers | None:
    """A number for each row, the same for all rows of a group; None where no two rows share a group."""
    if GROUP not in rows.column_names:
        return None
    known: dict[str, int] = {}
    found = np.arange(len(rows))
    for row, label in enumerate(group_labels(rows)):
        if has_group(label):
            found[row] = known.setdefault(label, row)
    return found if count_distinct(found) < len(found) else None


def count_of_other_groups(rows: datasets.Dataset, others: datasets.Dataset) -> int:
    """How many of the rows are of a group that some of the others are of, too."""
    if GROUP not in rows.column_names or GROUP not in others.column_names:
        return 0
    labels = [label for label in group_labels(rows) if has_group(label)]
    shared = set(labels).intersection(group_labels(others))
    return sum(label in shared for label in labels)


def serving_groups(rows: datasets.Dataset) -> Numbers | None:
    """`group_numbers`; None too where groups are so few that a column of that name must mean something else."""
    numbers = group_numbers(rows)
    return numbers if numbers is not None and count_distinct(numbers) >= min(MIN_GROUPS, len(numbers)) else None


def count_distinct(numbers: Numbers) -> int:
    return len(set(numbers.tolist()))


def joined(*numberings: Numbers) -> Numbers:
    """Rows that any of the numberings gives one number get one number, from 0 up."""
    if len(numberings) == 1:
        single: Numbers = np.unique(numberings[0], return_inverse=True)[1]
        return single
    rows = len(numberings[0])
    first = []
    for numbers in numberings:
        _, index, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        first.append(index[inverse])
    edges = np.concatenate(first), np.tile(np.arange(rows), len(first))
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(rows, rows))
    found: Numbers = connected_components(graph, directed=False)[1].astype(np.int64)
    return found


def fill(sizes: Sequence[int], wanted: float, leave: int = 1) -> list[int]:
    """The indices of whole groups whose sizes add up to about `wanted`: in this order those that fit, then the smallest
    of the others if that comes nearer. At least one group, and all but `leave` at most."""
    taken: list[int] = []
    total, most = 0, len(sizes) - leave
    for index, size in enumerate(sizes):
        if len(taken) < most and total + size <= wanted:
            taken.append(index)
            total += size
    left = set(range(len(sizes))).difference(taken)
    if len(taken) < most:
        smallest = min(left, key=lambda index: (sizes[index], index))
        if not taken or total + sizes[smallest] - wanted < wanted - total:
            taken.append(smallest)
    return taken


def split_by_hash(
    rows: datasets.Dataset, validation_fraction: float, test_fraction: float
) -> dict[str, datasets.Dataset]:
    """The rows by `places_by_hash`."""
    places = places_by_hash(rows, validation_fraction, test_fraction)
    return {name: rows.select(np.flatnonzero(places == name)) for name in SPLITS}


def places_by_hash(
    rows: datasets.Dataset, validation_fraction: float, test_fraction: float, alike: Numbers | None = None
) -> np.ndarray:
    """Each row's split, by the SHA-1 of its src_txt, a number from 0 to 1: test below one bound, validation below the
    next. So the shares are met on average, rows of one src_txt stay together, and none moves when others are added. Of
    a conversation it is that of all that the user says.

    Groups, and rows that are alike, have a number that follows from the lowest of theirs. Where rows have groups, where
    a split would be empty, and where one would be smaller than what falls into it, splits are filled in the order of
    these numbers, as near to their shares as whole groups allow. Rows that are alike in such numbers that they would be
    a split by themselves aren't copies but how these data are: they are divided like others.
    """
    found = np.array([hash_share(text) for batch in text_batches(rows) for text in users_texts(batch)])
    texts = np.unique(found, return_inverse=True)[1]
    groups = group_numbers(rows)
    shares = {"test": test_fraction, "validation": validation_fraction}
    wanted = {name: max(1, math.ceil(len(rows) * share)) for name, share in shares.items() if share}
    numberings = [texts] if groups is None else [texts, groups]
    if alike is not None and wanted:
        alike = np.unique(alike, return_inverse=True)[1]
        few = np.bincount(alike)[alike] <= max(FEW_ALIKE, min(wanted.values()))
        with_alike = joined(*numberings, np.where(few, alike, len(rows) + np.arange(len(rows))))
        if with_alike.max() >= len(wanted):
            return placed(with_alike, found, wanted, shares, groups is not None)
    units = joined(*numberings)
    if (count := units.max() + 1) <= len(wanted):
        raise too_few(count, groups is not None)
    return placed(units, found, wanted, shares, groups is not None)


def placed(
    units: Numbers, found: np.ndarray, wanted: Mapping[str, int], shares: Mapping[str, float], grouped: bool
) -> np.ndarray:
    """Each row's split; rows of one unit have the same. found: each row's hash_share."""
    lowest, highest = np.ones(units.max() + 1), np.zeros(units.max() + 1)
    np.minimum.at(lowest, units, found)
    np.maximum.at(highest, units, found)
    several = lowest < highest  # of whose numbers the lowest is the lower the more they are
    lowest[several] = [hash_share(str(share)) for share in lowest[several]]
    sizes = np.bincount(units)
    places = np.array([split_by_share(share, shares["test"], shares["validation"]) for share in lowest], object)
    fits = {"train", *wanted} <= set(places)
    fits = fits and all(sizes[places == name].max() <= wanted[name] for name in wanted)
    if grouped or not fits:
        places[:] = "train"
        for done, name in enumerate(wanted, 1):
            order = np.argsort(lowest, kind="stable")
            order = order[places[order] == "train"]
            chosen = fill(sizes[order].tolist(), wanted[name], 1 + len(wanted) - done)
            places[order[chosen]] = name
    every: np.ndarray = places[units]
    return every


def too_few(count: int, grouped: bool) -> DataError:
    what = "1 text is too little to split" if count == 1 else f"{count} different texts are too few to split"
    if grouped:
        groups = "1 group" if count == 1 else f"{count} groups"
        what = f"{groups} of rows (column group; rename it if it means something else) can't be split"
    return DataError(
        f"{what} into training, validation and test rows: give more, or set validation_fraction=0 or test_fraction=0"
    )


def split_by_share(share: float, test: float, validation: float) -> str:
    """The split of a text whose hash_share this is."""
    return "test" if share < test else "validation" if share < test + validation else "train"


def hash_share(text: str) -> float:
    """A number from 0 to 1 that follows from the text alone, evenly spread."""
    return int(sha1(text.encode()).hexdigest(), 16) / 2**160
