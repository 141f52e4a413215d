"""Rows: users' own data → a `datasets.Dataset` with string columns src_txt and, if present, tgt_txt.

Every value is the text that stands in the file: nothing is inferred, stripped, normalised or filled in. What
can't be taken as it stands is refused, all bad rows at once, with file, line and reason.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections.abc import Mapping

import datasets
import numpy as np
import pyarrow as pa

from .readers import DataError, Findings, visible_column
from .row_sources import RowSource, find_split_file, has_split, open_source

__all__ = ["DataError", "RowSource", "find_split_file", "fingerprint", "has_split", "load_rows"]

TEXT_COLUMNS = ("src_txt", "tgt_txt")

_ABSENT = object()
_JSON_NAMES = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "a list"}


def load_rows(
    source: RowSource,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    max_rows: int | None = None,
) -> datasets.Dataset:
    """All rows of `source`, in order, as an in-memory Dataset of string columns; other columns are dropped.

    source: a file (.csv .tsv .json .jsonl .ndjson .txt, also with .gz; .parquet), a folder of split files
        such as train.csv, a folder written by `save_to_disk`, a Dataset, a DatasetDict, {"src_txt": […]}, a
        list of dicts, or, where no such path exists, the name of a Hugging Face hub dataset.
    columns: the user's name → src_txt or tgt_txt, as ModelScope's `remap_columns` takes it.
    split: which file of a folder or split of a hub dataset; "train" by default. Refused other than as "train"
        where the source has no splits, so that training rows never pass for validation rows.
    max_rows: read no further than that many rows; what follows is not checked.

    Raises DataError naming the file, the line or row, the reason and the remedy.
    """
    origin = _check_columns(columns or {})
    if max_rows is not None and max_rows < 1:
        raise DataError(f"max_rows={max_rows}: must be 1 or more; leave it out to read all rows")
    findings, rows = open_source(source, split, set(origin.values()))
    positions: list[int] = []
    values: dict[str, list[object]] = {target: [] for target in origin}
    for position, row in itertools.islice(rows, max_rows):
        positions.append(position)
        for target, name in origin.items():
            values[target].append(row.get(name, _ABSENT))
    if not findings.columns and not findings.bad:
        raise DataError(f"{findings.where} has no rows")
    if findings.columns:
        _check_present(findings, columns or {}, origin)
    kept = {target: values[target] for target, name in origin.items() if name in findings.columns}
    _check_values(findings, positions, kept, origin)
    findings.raise_if_bad()
    if not positions:
        raise DataError(f"{findings.where} has no rows")
    return datasets.Dataset.from_dict(
        kept, features=datasets.Features({target: datasets.Value("string") for target in kept})
    )


def fingerprint(dataset: datasets.Dataset) -> str:
    """SHA-256, in hex, over what load_rows returned: the same for the same rows whatever file they came from.

    Hashed column by column: name, row count, UTF-8 lengths (int64, little-endian), then the bytes; no two
    different tables give the same input. Raises ValueError for null values or no src_txt.
    """
    digest = hashlib.sha256(b"moyun rows 1\n")
    names = [name for name in TEXT_COLUMNS if name in dataset.column_names]
    if "src_txt" not in names:
        raise ValueError(f"fingerprint: no column src_txt in {dataset.column_names}; take a dataset from load_rows")
    for name in names:
        column = visible_column(dataset, name)
        if column.null_count:
            raise ValueError(f"fingerprint: column {name!r} holds null values; take a dataset from load_rows")
        digest.update(f"{name} {len(column)}\n".encode())
        offsets = [_offsets(chunk) for chunk in column.chunks]
        for bounds in offsets:
            digest.update(np.diff(bounds).astype("<i8").tobytes())
        for chunk, bounds in zip(column.chunks, offsets, strict=True):
            if bounds[-1] > bounds[0]:
                digest.update(memoryview(chunk.buffers()[2])[bounds[0] : bounds[-1]])
    return digest.hexdigest()


def _offsets(chunk: pa.Array) -> np.ndarray:
    """Byte bounds (len + 1,) of a large_string array's values; a sliced array shares its parent's buffers."""
    if not len(chunk):
        return np.zeros(1, np.int64)
    return np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]


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
