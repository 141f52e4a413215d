"""Rows for training, validation and test: which file, folder or share of the rows each comes from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np

from ..config.data import DataConfig
from ..system.cache import cache_folder
from ..system.paths import expanded
from ..system.redaction import redact_text
from .arrow import LEARNT
from .corpora.manifest import read_manifest
from .groups import GROUP, count_of_other_groups, fill, serving_groups
from .quarantine import DataError, Quarantine
from .reading.column_names import MESSAGES, require_mapped
from .reading.finding import check_prepared, find_files
from .reading.pair_columns import REJECTED
from .rows import load_rows
from .sources import RowSource, has_split, has_splits

IN_MEMORY = "rows in memory"


@dataclass(frozen=True)
class Place:
    """Where the rows of a split come from."""

    source: RowSource
    split: str | None
    """Of the source; None: it has no splits, and all its rows are meant."""
    held_out: bool = False
    """Whether only a share of them is meant, drawn by seed."""
    note: str = ""
    """What else there is to say of the choice."""

    @property
    def name(self) -> str:
        """The file, folder or dataset, for a record of where rows come from."""
        if not isinstance(self.source, (str, Path)):
            return IN_MEMORY + (f", split {self.split}" if self.split else "")
        files = find_files(self.source, self.split)
        if files is None:
            return redact_text(f"{self.source}, split {self.split or 'train'}")
        return redact_text(str(files[0]) if len(files) == 1 else f"{self.source} ({len(files)} files)")

    def __str__(self) -> str:
        return f"{self.name} ({self.note})" if self.note else self.name


def place_in(source: RowSource, split: str) -> Place:
    """A file, saved or given Dataset is the split, whichever was asked for; of all else its own split is."""
    return Place(source, split if has_splits(source) else None)


def choose_places(config: DataConfig, given: RowSource | None = None) -> dict[str, Place]:
    """Split → where training takes its rows from; given: rows in memory, which stand in for config.path.

    Validation rows come from validation_path, else from the source's own validation split, else from the training
    rows. Raises DataError where no rows are named.
    """
    source = config.path if given is None else given
    if source is None:
        raise DataError("no training rows: give data.path=FILE, folder or hub name (or data=NAME, see --help)")
    check_prepared(source)
    places = {"train": place_in(source, "train")}
    for split, path in (("validation", config.validation_path), ("test", config.test_path)):
        if path:
            check_prepared(path)
            places[split] = place_in(path, split)
        elif has_split(source, split):
            places[split] = Place(source, split)
    if "validation" not in places:
        note = f"{100 * config.validation_fraction:g}% of its rows: data.validation_fraction"
        places["validation"] = Place(source, places["train"].split, held_out=True, note=note)
    return places


def load_splits(
    config: DataConfig,
    seed: int,
    source: RowSource | None = None,
    quarantine: Quarantine | None = None,
    extras: Collection[str] = (),
    pairs: bool = False,
) -> dict[str, datasets.Dataset]:
    """{"train": …, "validation": …, and "test" where there is one}; validated rows, from `choose_places`.

    source stands in for config.path where rows are already in memory, e.g. Dataset.from_dict({"src_txt": […]}).
    Validation rows that have no place of their own are drawn from the training rows by seed. quarantine takes bad
    rows; without one they are refused. extras: columns to keep beside the texts. pairs: read preference rows. Raises
    DataError, also where some splits have answers and others haven't.
    """
    places = choose_places(config, source)
    read = partial(reader(config, quarantine, {*extras, GROUP}), pairs=pairs)
    splits = {name: read(place.source, split=place.split) for name, place in places.items() if not place.held_out}
    for name in splits:
        require_same_kind(splits["train"], splits[name], places["train"], places[name])
    require_mapped((rows.column_names for rows in splits.values()), config.columns)
    if places["validation"].held_out:
        splits["train"], splits["validation"] = hold_out(splits["train"], config.validation_fraction, seed)
    names = [name for name in ("train", "validation", "test") if name in splits]
    return {name: texts_alone(splits[name], extras) for name in names}


def texts_alone(rows: datasets.Dataset, extras: Collection[str] = ()) -> datasets.Dataset:
    """Without other columns than the texts and these."""
    kept = [name for name in rows.column_names if name in LEARNT or name in extras]
    return rows if kept == rows.column_names else rows.select_columns(kept)


def related_rows(splits: Mapping[str, datasets.Dataset], places: Mapping[str, Place]) -> dict[str, int]:
    """Split → its rows of a group that training rows are of, too; only where both have groups, by labels that can be
    compared."""
    return {
        name: count_of_other_groups(rows, splits["train"])
        for name, rows in splits.items()
        if name != "train"
        and all(GROUP in split.column_names for split in (rows, splits["train"]))
        and all(groups_are_named(places[each].source) for each in ("train", name))
    }


def load_training_rows(
    config: DataConfig, seed: int, quarantine: Quarantine | None = None, extras: Collection[str] = ()
) -> datasets.Dataset:
    """The training rows of load_splits, without reading the others."""
    places = choose_places(config)
    read = reader(config, quarantine, {*extras, GROUP} if places["validation"].held_out else extras)
    rows = read(places["train"].source, split=places["train"].split)
    return hold_out(rows, config.validation_fraction, seed)[0] if places["validation"].held_out else rows


def require_same_kind(
    train: datasets.Dataset, other: datasets.Dataset, place: Place, others_place: Place, section: str = "data."
) -> None:
    """DataError where one has answers to learn and the other plain text: a score would be of another task."""
    kinds = [KINDS[kind_of_rows(rows.column_names)] for rows in (train, other)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"{place}: {kinds[0]}, but {others_place}: {kinds[1]}; give all splits the same columns "
            f"({section}columns.YOUR_COLUMN=tgt_txt names the answers)"
        )


def kind_of_rows(columns: Collection[str]) -> str:
    """In words: what is learnt from rows hangs on their columns."""
    if REJECTED in columns:
        return "preferences"
    if MESSAGES in columns:
        return "conversations"
    return "pairs" if "tgt_txt" in columns else "rows of plain text"


KINDS = {
    "preferences": "preferences (prompt, chosen, rejected)",
    "conversations": "conversations (messages)",
    "pairs": "pairs (src_txt and tgt_txt)",
    "rows of plain text": "plain text (src_txt alone)",
}
"""What `kind_of_rows` says, with the columns."""


def reader(
    config: DataConfig, quarantine: Quarantine | None, extras: Collection[str] = ()
) -> Callable[..., datasets.Dataset]:
    """load_rows with what the configuration says of all splits."""
    return partial(
        load_rows,
        columns=config.columns,
        max_rows=config.max_rows,
        cache=cache_folder(config.cache_dir),
        quarantine=quarantine,
        extras=extras,
    )


def groups_are_named(source: RowSource) -> bool:
    """Whether a group's label means the same in all splits: some of prepare's own sets number theirs in each."""
    if not isinstance(source, (str, Path)):
        return True
    place = Path(expanded(str(source)))
    manifest = next(filter(None, map(read_manifest, (place, *list(place.parents)[:2]))), {})
    return "recipe" not in manifest or "groups" in manifest


def evaluation_place(config: DataConfig) -> Place:
    """The rows to evaluate on: test_path, else the test split beside the training rows, else the validation split."""
    if config.test_path:
        check_prepared(config.test_path)
        return place_in(config.test_path, "test")
    check_prepared(config.path or "")
    for split in ("test", "validation"):
        if config.path and has_split(config.path, split):
            return Place(config.path, split, note="it has no test rows" if split == "validation" else "")
    raise DataError(
        f"{config.path or 'data.path is unset'}: no test rows here; give data.test_path=FILE, or split your rows with "
        "python -m pipelines.prepare source=FILE"
    )


def load_test_rows(
    config: DataConfig, quarantine: Quarantine | None = None, extras: Collection[str] = ()
) -> datasets.Dataset:
    """The rows of `evaluation_place`."""
    place = evaluation_place(config)
    rows = reader(config, quarantine, extras)(place.source, split=place.split)
    require_mapped([rows.column_names], config.columns)
    return rows


def hold_out(rows: datasets.Dataset, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(the rest, a share of the rows drawn by seed), both in the order of the rows; at least one row each.

    Where rows have groups that can serve, whole groups are drawn.
    """
    count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    if count < 1 or not fraction:
        raise DataError(
            f"{len(rows)} rows and data.validation_fraction={fraction} leave none for validation: "
            "give more rows, a fraction above 0, or data.validation_path=FILE"
        )
    held_out = np.zeros(len(rows), bool)
    groups = serving_groups(rows)
    if groups is None:
        held_out[np.random.default_rng(seed).permutation(len(rows))[:count]] = True
    else:
        labels, sizes = np.unique(groups, return_counts=True)
        drawn = np.random.default_rng(seed).permutation(len(labels))
        held_out = np.isin(groups, labels[drawn[fill(sizes[drawn].tolist(), count)]])
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))
