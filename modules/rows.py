"""Rows: users' own data → a `datasets.Dataset` with string columns src_txt and, if present, tgt_txt.

Every value is the text that stands in the file: nothing is inferred, stripped, normalised or filled in. What
can't be taken as it stands is refused, all bad rows at once, with file, line and reason.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import datasets

from .cache import cached, writing
from .readers import DataError, Findings, Row
from .row_files import sha256_of
from .row_sources import RowSource, files_of, find_split_file, has_split, is_mapped, open_source
from .row_tables import fingerprint, text_batches, write_table

__all__ = ["DataError", "RowSource", "find_split_file", "fingerprint", "has_split", "load_rows", "text_batches"]

TEXT_COLUMNS = ("src_txt", "tgt_txt")
TABLE = "rows.arrow"

_BATCH_ROWS, _BATCH_CHARACTERS = 10_000, 4_000_000
_ABSENT = object()
_JSON_NAMES = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "a list"}
_Batches = Iterator[dict[str, list[str]]]


def load_rows(
    source: RowSource,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    max_rows: int | None = None,
    cache: Path | None = None,
) -> datasets.Dataset:
    """All rows of `source`, in order, as a Dataset of string columns; other columns are dropped.

    source: a file (.csv .tsv .json .jsonl .ndjson .txt, also with .gz; .parquet), a folder of split files
        such as train.csv, a folder written by `save_to_disk`, a Dataset, a DatasetDict, {"src_txt": […]}, a
        list of dicts, or, where no such path exists, the name of a Hugging Face hub dataset.
    columns: the user's name → src_txt or tgt_txt, as ModelScope's `remap_columns` takes it.
    split: which file of a folder or split of a hub dataset; "train" by default. Refused other than as "train"
        where the source has no splits, so that training rows never pass for validation rows.
    max_rows: read no further than that many rows; what follows is not checked.
    cache: where files of any size are kept as a table that is mapped into memory; a file of the same content is
        not read and checked a second time. None: all rows in memory.

    Raises DataError naming the file, the line or row, the reason and the remedy.
    """
    columns = columns or {}
    origin = _check_columns(columns)
    if max_rows is not None and max_rows < 1:
        raise DataError(f"max_rows={max_rows}: must be 1 or more; leave it out to read all rows")

    def opened() -> tuple[Findings, Iterator[Row]]:
        findings, rows = open_source(source, split, set(origin.values()))
        return findings, itertools.islice(rows, max_rows)

    read = functools.partial(_checked, opened, columns, origin)
    files = files_of(source, split) if cache else None
    if cache and files:
        content = [("".join(path.suffixes), sha256_of(path)) for path in files]
        key = {"files": content, "columns": sorted(columns.items()), "max_rows": max_rows}
        entry = cached(cache, "rows", key, lambda folder: write_table(folder / TABLE, read()))
        return datasets.Dataset.from_file(str(entry / TABLE))
    if cache and is_mapped(source, split):
        return _on_disk(read(), cache)
    return _in_memory(read())


def _on_disk(batches: _Batches, cache: Path) -> datasets.Dataset:
    """Mapped from a file that is deleted at once: its bytes stay until nobody maps them."""
    with writing(cache), tempfile.TemporaryDirectory(".rows", ".", cache) as folder:
        write_table(Path(folder) / TABLE, batches)
        return datasets.Dataset.from_file(str(Path(folder) / TABLE))


def _in_memory(batches: _Batches) -> datasets.Dataset:
    values: dict[str, list[str]] = {}
    for batch in batches:
        for name, texts in batch.items():
            values.setdefault(name, []).extend(texts)
    return datasets.Dataset.from_dict(
        values, features=datasets.Features({name: datasets.Value("string") for name in values})
    )


def _checked(
    opened: Callable[[], tuple[Findings, Iterator[Row]]],
    columns: Mapping[str, str],
    origin: Mapping[str, str],
    known: Collection[str] = (),
) -> _Batches:
    """The rows' texts batch by batch; DataError for all bad rows once the last one is read.

    known: columns that rows have to have, though the first ones may lack them.
    """
    findings, rows = opened()
    findings.columns.update(dict.fromkeys(known))
    present: dict[str, str] | None = None
    for batch in _in_batches(rows):
        before = present
        present = {target: name for target, name in origin.items() if name in findings.columns}
        if before not in (None, present):  # what came before has a fault that only shows now: read again, to name it
            yield from _checked(opened, columns, origin, present.values())
        values = {target: [row.get(name, _ABSENT) for _, row in batch] for target, name in present.items()}
        _check_values(findings, [position for position, _ in batch], values, origin)
        if values and not findings.bad:
            yield values  # type: ignore[misc]  # checked to be texts
    if not findings.columns and not findings.bad:
        raise DataError(f"{findings.where} has no rows")
    if findings.columns:
        _check_present(findings, columns, origin)
    findings.raise_if_bad()
    if present is None:
        raise DataError(f"{findings.where} has no rows")


def _in_batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """As many rows as make up a few megabytes."""
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(value) for value in row[1].values() if isinstance(value, str))
        if len(batch) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _check_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """{"src_txt": the user's name for it, …}, without regard to what the data holds."""
    origin: dict[str, str] = {}
    for name, target in columns.items():
        if target not in TEXT_COLUMNS:
            near = difflib.get_close_matches(str(target), TEXT_COLUMNS, 1, 0.3)
            hint = f"; did you mean data.columns.{name}={near[0]}?" if near else ""
            raise DataError(f"data.columns.{name}={target}: the target must be src_txt or tgt_txt{hint}")
        if target in origin:
            raise DataError(
                f"data.columns: both {origin[target]!r} and {name!r} are mapped to {target}; keep one of them"
            )
        origin[target] = name
    for target in TEXT_COLUMNS:
        if target not in columns:
            origin.setdefault(target, target)
    return {target: origin[target] for target in TEXT_COLUMNS if target in origin}


def _check_present(findings: Findings, columns: Mapping[str, str], origin: Mapping[str, str]) -> None:
    present = list(findings.columns)
    listed = ", ".join(map(repr, present))
    for name, target in columns.items():
        if name not in findings.columns:
            free = [column for column in present if column not in columns]
            near = difflib.get_close_matches(name, free, 1)
            hint = f"did you mean data.columns.{near[0]}={target}?" if near else "name one of these"
            raise DataError(f"{findings.where} has no column {name!r}; its columns are {listed}; {hint}")
        if name != target and target in findings.columns and target not in columns:
            raise DataError(
                f"{findings.where}: two columns would become {target}: {target!r} itself and {name!r}, by"
                f" data.columns.{name}={target}; leave that setting out, or rename the column {target!r};"
                f" the columns are {listed}"
            )
    if origin.get("src_txt") not in findings.columns:
        near = difflib.get_close_matches("src_txt", [name for name in present if name not in columns], 1)
        example = near[0] if near else "YOUR_COLUMN"
        lack = "has no column src_txt" if "src_txt" in origin else "has its src_txt mapped to tgt_txt alone"
        raise DataError(
            f"{findings.where} {lack}; its columns are {listed};"
            f" say which one holds the text with data.columns.{example}=src_txt"
        )


def _check_values(
    findings: Findings, positions: list[int], values: Mapping[str, list[object]], origin: Mapping[str, str]
) -> None:
    reasons: dict[int, list[str]] = {}
    for target, column in values.items():
        label = target if origin[target] == target else f"{target} (column {origin[target]!r})"
        for index, value in enumerate(column):
            reason = _fault(value)
            if reason:
                reasons.setdefault(index, []).append(f"{label} {reason}")
    findings.bad.extend((positions[index], " and ".join(parts)) for index, parts in reasons.items())


def _fault(value: object) -> str | None:
    if isinstance(value, str):
        if not value or value.isspace():
            return "is only white space" if value else "is empty"
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"holds half a surrogate pair ({value[error.start]!a}), which is no character"
        return None
    if value is _ABSENT:
        return "is missing"
    name = _JSON_NAMES.get(type(value), f"of type {type(value).__name__}")
    shown = "" if value is None else f" ({str(value)[:40]})"
    return f"is {name}{shown}, not a string"
