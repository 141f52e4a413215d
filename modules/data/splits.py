"""Rows for training, validation and test: which file, folder or share of the rows each comes from."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import datasets
import numpy as np

from ..config.data import DataConfig
from ..system.cache import cache_folder
from .quarantine import DataError, Quarantine
from .rows import load_rows
from .sources import RowSource, has_split


def load_splits(
    config: DataConfig,
    seed: int,
    source: RowSource | None = None,
    quarantine: Quarantine | None = None,
    extras: Collection[str] = (),
) -> dict[str, datasets.Dataset]:
    """{"train": …, "validation": …, and "test" where there is one}; validated rows.

    source stands in for config.path where rows are already in memory, e.g. Dataset.from_dict({"src_txt": […]}).
    Validation rows come from validation_path, else from the source's own validation split, else from the
    training rows, drawn by seed. quarantine takes bad rows; without one they are refused. extras: columns to keep
    beside the texts. Raises DataError.
    """
    source = config.path if source is None else source
    if source is None:
        raise DataError("no training rows: give data.path=FILE, folder or hub name (or data=NAME, see --help)")
    check_prepared(source)
    read = reader(config, quarantine, extras)
    train = read(source, split="train")
    splits = {"train": train}
    for name, path in (("validation", config.validation_path), ("test", config.test_path)):
        if path:
            splits[name] = read(path)
        elif has_split(source, name):
            splits[name] = read(source, split=name)
    if "validation" not in splits:
        splits["train"], splits["validation"] = hold_out(train, config.validation_fraction, seed)
    return splits


def load_training_rows(
    config: DataConfig, seed: int, quarantine: Quarantine | None = None, extras: Collection[str] = ()
) -> datasets.Dataset:
    """The training rows of load_splits, without reading the others."""
    source = config.path or ""
    check_prepared(source)
    rows = reader(config, quarantine, extras)(source, split="train")
    if config.validation_path or has_split(source, "validation"):
        return rows
    return hold_out(rows, config.validation_fraction, seed)[0]


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


def check_prepared(source: RowSource) -> None:
    """What conf/data/ names is made by a stage of ours: say which, where it hasn't run yet."""
    if isinstance(source, str) and Path(source).parts[:1] == ("prepared",) and not Path(source).exists():
        name = Path(source).parts[1:2]
        command = "python -m pipelines.prepare" + (f" source={name[0]}" if name and name != ("sample",) else "")
        raise DataError(f"{source} isn't there yet: `{command}` makes it; or give rows of your own, data.path=FILE")


def load_test_rows(
    config: DataConfig, quarantine: Quarantine | None = None, extras: Collection[str] = ()
) -> datasets.Dataset:
    """The rows to evaluate on: test_path, else the test split beside the training rows."""
    check_prepared(config.test_path or config.path or "")
    if config.test_path:
        return reader(config, quarantine, extras)(config.test_path)
    if config.path and has_split(config.path, "test"):
        return reader(config, quarantine, extras)(config.path, split="test")
    raise DataError(
        f"{config.path or 'data.path is unset'}: no test rows here; give data.test_path=FILE, or split your rows with "
        "python -m pipelines.prepare source=FILE"
    )


def hold_out(rows: datasets.Dataset, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(the rest, a share of the rows drawn by seed), both in the order of the rows; at least one row each."""
    count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    if count < 1 or not fraction:
        raise DataError(
            f"{len(rows)} rows and data.validation_fraction={fraction} leave none for validation: "
            "give more rows, a fraction above 0, or data.validation_path=FILE"
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(np.sort(order[count:])), rows.select(np.sort(order[:count]))
