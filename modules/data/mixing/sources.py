"""The rows of a mixture's sources, each with splits of its own; without a mixture those of data.path."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import datasets

from ...config.data import DataConfig
from ..quarantine import DataError, Quarantine, said_of
from ..sources import RowSource
from ..splits import Place, choose_places, load_splits, related_rows


def split_name(split: str, source: str) -> str:
    """train/poems; without a mixture train."""
    return f"{split}/{source}" if source else split


def part_of(name: str) -> tuple[str, str]:
    """(split, source) of what `split_name` made."""
    split, _, source = name.partition("/")
    return split, source


def choose_all_places(config: DataConfig, given: RowSource | None = None) -> dict[str, Place]:
    """`choose_places` of all sources, by `split_name`. DataError where rows are given, and a mixture too."""
    if given is not None and config.mix:
        raise DataError("data.mix names the rows, and rows in memory are given as well: drop one of them")
    found: dict[str, Place] = {}
    for name, section in config.sources.items():
        with said_of(name):
            places = choose_places(section, given)
        found |= {split_name(split, name): place for split, place in places.items()}
    return found


def load_all_splits(
    config: DataConfig,
    seed: int,
    given: RowSource | None = None,
    quarantine: Quarantine | None = None,
    extras: Collection[str] = (),
) -> dict[str, datasets.Dataset]:
    """`load_splits` of all sources, by `split_name`; first what is trained on of each, then the rest."""
    found: dict[str, datasets.Dataset] = {}
    for name, section in config.sources.items():
        with said_of(name):
            rows = load_splits(section, seed, given, quarantine, extras)
        found |= {split_name(split, name): each for split, each in rows.items()}
    return dict(sorted(found.items(), key=lambda item: ("train", "validation", "test").index(part_of(item[0])[0])))


def all_related_rows(splits: Mapping[str, datasets.Dataset], places: Mapping[str, Place]) -> dict[str, int]:
    """`related_rows`, within each source: two sources may well have groups of the same name."""
    found: dict[str, int] = {}
    for source in {part_of(name)[1]: None for name in splits}:
        own = {part_of(name)[0]: name for name in splits if part_of(name)[1] == source}
        related = related_rows(
            {split: splits[name] for split, name in own.items()}, {split: places[name] for split, name in own.items()}
        )
        found |= {own[split]: count for split, count in related.items()}
    return found
