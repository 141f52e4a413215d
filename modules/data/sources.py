"""Where rows come from: a file, a folder of splits, a saved or given Dataset, Python rows, or the hub."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from ..system.paths import expanded, require_regular
from ..system.redaction import first_line
from . import readers
from .quarantine import DataError, Findings
from .readers import Row

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt")
RowSource: TypeAlias = str | Path | datasets.Dataset | Mapping[str, Sequence[str]] | Sequence[Mapping[str, str]]

_VALIDATION_NAMES = ("validation", "valid", "dev", "val")
_HUB_SECONDS = 5.0
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def open_source(
    source: RowSource, split: str | None, texts: Collection[str], extras: Collection[str]
) -> tuple[Findings, Iterator[Row]]:
    """The rows of anything load_rows takes, unread as yet, and the Findings that reading them will fill.

    texts: the user's names of the columns that must be strings; extras: further columns to read, of any type.
    Raises DataError where there is no such source or split.
    """
    if isinstance(source, (str, Path)):
        path = locate(source, split)
        if path and path.is_file():
            findings = Findings(str(path))
            return findings, read_file(path, findings, texts, extras)
        dataset, where = (_from_disk(path), str(path)) if path else (_from_hub(source, split), f"hub dataset {source}")
    elif isinstance(source, datasets.DatasetDict):
        where = f"split {split or 'train'!r}"
        if (split or "train") not in source:
            raise DataError(f"the given DatasetDict has no {where}; it has {', '.join(source)}")
        dataset = source[split or "train"]
    elif isinstance(source, datasets.Dataset):
        dataset, where = source, "the given dataset"
        _check_split(where, split)
    else:
        findings = Findings("the given rows")
        _check_split(findings.where, split)
        if isinstance(source, Mapping):
            return findings, readers.column_rows(source, findings)
        if isinstance(source, Sequence) and not isinstance(source, bytes):
            return findings, readers.object_rows(source, findings)
        raise DataError(f"can't read rows from a {type(source).__name__}; give a path, a Dataset, a dict or a list")
    findings = Findings(where)
    return findings, readers.dataset_rows(dataset, findings, texts, extras)


def locate(source: str | Path, split: str | None) -> Path | None:
    """The file or saved Dataset that holds the split; None where there is no such path here."""
    path = Path(expanded(str(source)))
    if not path.exists():
        return None
    if not path.is_dir() or _is_saved_dataset(path):
        _check_split(str(path), split)
    elif found := find_split_file(path, split or "train"):
        path = found
    else:
        present = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise DataError(
            f"{path} has no file for split {split or 'train'!r}; it holds {present};"
            f" name one {split or 'train'}.csv (.jsonl, .parquet, …), or give a file's path"
        )
    if not path.is_file() and not path.is_dir():  # a pipe would be waited for, and what was read of it once is gone
        raise DataError(f"{path}: no regular file but a pipe or device; save what it gives to a file first")
    return path


def files_of(source: RowSource, split: str | None) -> list[Path] | None:
    """The files whose bytes decide what open_source gives; None for what isn't a path here."""
    path = locate(source, split) if isinstance(source, (str, Path)) else None
    if path and path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path else None


def is_mapped(source: RowSource, split: str | None) -> bool:
    """Whether rows that aren't files here may be more than memory holds: those of the hub, and of mapped Datasets."""
    if isinstance(source, datasets.DatasetDict):
        source = source.get(split or "train", source)
    if isinstance(source, datasets.Dataset):
        return bool(source.cache_files)
    return isinstance(source, (str, Path))


def _check_split(where: str, split: str | None) -> None:
    if split not in (None, "train"):
        raise DataError(
            f"{where} has no splits, so no {split!r}; give a folder with train.* and {split}.*, or leave split out"
        )


def _is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def _from_disk(path: Path) -> datasets.Dataset:
    try:
        for file in path.rglob("*"):
            if not file.is_dir():
                require_regular(file)
        return datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder shows as almost any exception inside datasets
        raise DataError(f"{path}: not a complete saved Dataset ({error}); save it again") from error


def _from_hub(source: str | Path, split: str | None) -> datasets.Dataset:
    name = str(source)
    reason = "no such path"
    if isinstance(source, str) and _HUB_NAME.fullmatch(name) and file_format(Path(name)) is None:
        silence = _why_the_hub_is_silent(name)
        try:
            with _cached_alone(silence is not None):
                return datasets.load_dataset(name, split=split or "train")
        except Exception as error:  # no network, no such name, no such split, no rights: one answer for all
            reason = silence or first_line(error)
    where = f"{name} is neither a file nor a reachable hub dataset ({reason})"
    raise DataError(f"{where}; check the name, or the path from {Path.cwd()}")


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


def find_split_file(folder: str | Path, split: str) -> Path | None:
    """The file, or folder written by `save_to_disk`, that holds `split`; None where there is none.

    "validation" is also found as valid, val and dev. Raises DataError where more than one would do.
    """
    names = _VALIDATION_NAMES if split in _VALIDATION_NAMES else (split,)
    found = []
    for path in sorted(Path(folder).iterdir()):
        stem = path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem
        if stem in names and (_is_saved_dataset(path) if path.is_dir() else file_format(path)):
            found.append(path)
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: more than one file for split {split!r}: {listed}; keep one, or give its path")
    return found[0] if found else None


def has_split(source: RowSource, split: str) -> bool:
    """Whether load_rows(source, split=split) finds rows of that split's own; False for what has no splits.

    Asks no server: False for the name of a hub dataset too.
    """
    if isinstance(source, datasets.DatasetDict):
        return split in source
    if not isinstance(source, (str, Path)):
        return False
    path = Path(expanded(str(source)))
    return path.is_dir() and not _is_saved_dataset(path) and find_split_file(path, split) is not None


def file_format(path: Path) -> str | None:
    """`.csv` for both x.csv and x.CSV.gz; None for anything that load_rows doesn't read."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    return suffix if suffix in FORMATS and not (packed and suffix == ".parquet") else None


def read_file(path: Path, findings: Findings, texts: Collection[str], extras: Collection[str]) -> Iterator[Row]:
    """Rows of one file, its format told by the name. Columns beside `texts` and `extras` may be left unread.

    Raises DataError for an unknown format, an unreadable file, bytes that aren't UTF-8, and broken structure.
    """
    kind = file_format(path)
    if kind is None:
        raise DataError(f"{path}: unknown format; use one of {', '.join(FORMATS)} (all but .parquet also as .gz)")
    findings.unit = "row" if kind in (".json", ".parquet") else "line"
    try:
        if kind == ".parquet":
            with pq.ParquetFile(path) as table:
                columns = readers.present_columns(table.schema_arrow, findings, texts, extras)
                yield from readers.arrow_rows(table.iter_batches(columns=columns))
        elif kind == ".json":
            yield from readers.json_rows(path, findings)
        elif kind in (".csv", ".tsv"):
            yield from readers.csv_rows(path, findings, "," if kind == ".csv" else "\t")
        else:
            yield from (readers.txt_rows if kind == ".txt" else readers.jsonl_rows)(path, findings)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a complete gzip file ({error}); make or download it again") from error
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a valid parquet file ({error}); write it again") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error}); check it and its rights") from error
