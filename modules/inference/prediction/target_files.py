"""Rows with their answers as a file: csv, tsv, jsonl or parquet, written a window of rows at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...data.arrow import is_text
from ...data.rows import as_text

TYPES = {
    frozenset({"boolean"}): pa.bool_(),
    frozenset({"integer"}): pa.int64(),
    frozenset({"long"}): pa.int64(),
    frozenset({"integer", "long"}): pa.int64(),
    frozenset({"float"}): pa.float64(),
    frozenset({"integer", "float"}): pa.float64(),
}
"""Kinds of a column's values (source_rows.py) → the type that holds them all as they are; text for any others."""

Rows = Sequence[Mapping[str, Any]]
Write = Callable[[IO[bytes], Mapping[str, pa.DataType], Iterable[Rows]], None]


def write_delimited(
    stream: IO[bytes], columns: Mapping[str, pa.DataType], windows: Iterable[Rows], delimiter: str
) -> None:
    """A header and a line a row; what is missing is empty, and what is no text is written as JSON."""

    def line(values: Iterable[str]) -> bytes:
        return (delimiter.join(quoted(value, delimiter) for value in values) + "\n").encode("utf-8", "replace")

    stream.write(line(columns))
    for rows in windows:
        stream.write(b"".join(line(as_text(row.get(name)) for name in columns) for row in rows))


def quoted(value: str, delimiter: str) -> str:
    """Python's csv leaves a lone carriage return without quotes, which ends a line for its reader."""
    if any(sign in value for sign in (delimiter, '"', "\n", "\r")):
        return '"' + value.replace('"', '""') + '"'
    return value


def write_csv(stream: IO[bytes], columns: Mapping[str, pa.DataType], windows: Iterable[Rows]) -> None:
    write_delimited(stream, columns, windows, ",")


def write_tsv(stream: IO[bytes], columns: Mapping[str, pa.DataType], windows: Iterable[Rows]) -> None:
    write_delimited(stream, columns, windows, "\t")


def write_jsonl(stream: IO[bytes], columns: Mapping[str, pa.DataType], windows: Iterable[Rows]) -> None:
    """An object a row, with the columns that the row has."""
    for rows in windows:
        for row in rows:
            values = {name: None if value != value else value for name, value in row.items()}  # JSON has no NaN
            text = json.dumps(values, ensure_ascii=False, default=as_text)
            # Half a surrogate pair becomes \udXXX, which is just how JSON writes it.
            stream.write(text.encode("utf-8", "backslashreplace") + b"\n")


def write_parquet(stream: IO[bytes], columns: Mapping[str, pa.DataType], windows: Iterable[Rows]) -> None:
    """A row group a window."""
    schema = pa.schema(list(columns.items()))
    with pq.ParquetWriter(stream, schema) as writer:
        for rows in windows:
            arrays = [column_of([row.get(name) for row in rows], kind) for name, kind in columns.items()]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def column_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if is_text(kind):
        values = [None if value is None else as_text(value) for value in values]
    return pa.array(values, kind)


WRITERS: dict[str, Write] = {
    "csv": write_csv,
    "tsv": write_tsv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}
"""Format → what writes it."""


def column_types(
    columns: Mapping[str, set[str]], types: Mapping[str, Any], new: Mapping[str, pa.DataType]
) -> dict[str, pa.DataType]:
    """Column → its type in Parquet: the source's own, else one that holds its values.

    new: The columns that come after those of the source.
    """
    own = {name: types.get(name) or TYPES.get(frozenset(kinds), pa.string()) for name, kinds in columns.items()}
    return {**own, **new}
