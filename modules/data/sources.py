"""Where rows come from: a file, a folder of splits, a saved or given Dataset, Python rows, or the hub."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import datasets
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from ..system.paths import expanded, require_regular
from ..system.redaction import first_line
from .quarantine import DataError, Findings
from .reading.files import findings_of, read_files
from .reading.finding import (
    check_undivided,
    find_files,
    is_divided,
    is_saved_dataset,
    may_be_on_hub,
    nowhere,
    several,
    split_files,
)
from .reading.json_values import column_rows, object_rows
from .reading.split_names import SPLIT_NAMES
from .reading.tables import dataset_rows
from .reading.text_lines import Row

RowSource: TypeAlias = (
    str | Path | datasets.Dataset | Mapping[str, Sequence[str]] | Sequence[Mapping[str, str]] | Sequence[str]
)

_HUB_SECONDS = 5.0


def open_source(
    source: RowSource, split: str | None, texts: Collection[str], extras: Collection[str]
) -> tuple[Findings, Iterator[Row]]:
    """The rows of anything load_rows takes, unread as yet, and the Findings that reading them will fill.

    texts: the user's names of the columns that must be strings; extras: further columns to read, of any type.
    Raises DataError where there is no such source or split.
    """
    if isinstance(source, (str, Path)):
        files = find_files(source, split)
        if files and not files[0].is_dir():
            findings = findings_of(files, source)
            return findings, read_files(files, findings, texts, extras)
        if files:
            dataset, where = _from_disk(files[0]), str(files[0])
        else:
            where = f"hub dataset {source}"
            dataset, where = _split_of(_from_hub(source), where, split), f"{where}, split {split or 'train'!r}"
    elif isinstance(source, datasets.DatasetDict):
        where = f"split {split or 'train'!r}"
        dataset = _split_of(source, "the given DatasetDict", split)
    elif isinstance(source, datasets.Dataset):
        dataset, where = source, "the given dataset"
        check_undivided(where, split)
    else:
        findings = Findings("the given data")
        check_undivided(findings.where, split)
        if isinstance(source, Mapping):
            return findings, column_rows(source, findings)
        if isinstance(source, Sequence) and not isinstance(source, bytes):
            return findings, object_rows(enumerate(source, 1), findings)
        raise DataError(f"can't read rows from a {type(source).__name__}; give a path, a Dataset, a dict or a list")
    findings = Findings(where)
    return findings, dataset_rows(dataset, findings, texts, extras)


def files_of(source: RowSource, split: str | None) -> list[Path] | None:
    """The files whose bytes decide what open_source gives; None for what isn't a path here."""
    files = find_files(source, split) if isinstance(source, (str, Path)) else None
    if files and files[0].is_dir():
        return sorted(file for file in files[0].rglob("*") if file.is_file())
    return files


def is_mapped(source: RowSource, split: str | None) -> bool:
    """Whether rows that aren't files here may be more than memory holds: those of the hub, and of mapped Datasets."""
    if isinstance(source, datasets.DatasetDict):
        source = _split_of(source, "the given DatasetDict", split)
    if isinstance(source, datasets.Dataset):
        return bool(source.cache_files)
    return isinstance(source, (str, Path))


def _split_of(source: datasets.DatasetDict, where: str, split: str | None) -> datasets.Dataset:
    for name in SPLIT_NAMES.get(split or "train", (split,)):
        if name in source:
            return source[name]
    raise DataError(f"{where} has no split {split or 'train'!r}; it has {', '.join(source)}")


def _from_disk(path: Path) -> datasets.Dataset:
    try:
        for file in path.rglob("*"):
            if not file.is_dir():
                require_regular(file)
        return datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder shows as almost any exception inside datasets
        raise DataError(f"{path}: not a complete saved Dataset ({error}); save it again") from error


@functools.lru_cache(maxsize=8)
def _from_hub(source: str | Path) -> datasets.DatasetDict:
    """All splits of a dataset of the hub, which is asked once a process."""
    name, reason = str(source), "no such path"
    if may_be_on_hub(source):
        silence = _why_the_hub_is_silent(name)
        try:
            with _cached_alone(silence is not None):
                return datasets.load_dataset(name)
        except Exception as error:  # no network, no such name, no rights: one answer for all
            reason = silence or first_line(error)
    raise nowhere(source, reason)


def _why_the_hub_is_silent(name: str) -> str | None:
    """Asked once and briefly: load_dataset asks for 40 s and says so in nine lines. None where it knows the name."""
    try:
        HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(name, timeout=_HUB_SECONDS)
    except RepositoryNotFoundError:
        return "no such path, and the hub has none of that name that you may read"
    except Exception as error:  # of whatever lies between here and the hub
        return f"no such path, and of the hub: {first_line(error)}"
    return None


@contextmanager
def _cached_alone(alone: bool) -> Iterator[None]:
    """While alone, load_dataset asks no server: what was fetched earlier is found all the same."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or alone
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def has_split(source: RowSource, split: str) -> bool:
    """Whether load_rows(source, split=split) finds rows of that split's own; False for what has no splits."""
    if not has_splits(source):
        return False
    if isinstance(source, (str, Path)):
        path = Path(expanded(str(source)))
        if path.exists():
            return bool(split_files(path, split))
        source = _from_hub(source)
    return isinstance(source, datasets.DatasetDict) and not source.keys().isdisjoint(SPLIT_NAMES.get(split, (split,)))


def has_splits(source: RowSource) -> bool:
    """Whether a split of it has to be named: of a folder with files of splits, a DatasetDict, a dataset of the hub."""
    if not isinstance(source, (str, Path)):
        return isinstance(source, datasets.DatasetDict)
    path = Path(expanded(str(source)))
    if not path.is_dir():
        return not path.exists() and several(source) is None
    return not is_saved_dataset(path) and is_divided(path)
