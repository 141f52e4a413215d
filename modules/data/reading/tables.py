"""Parquet files and Datasets: columns of strings, read a few megabytes at a time."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from ..arrow import BATCH_BYTES, is_text, record_batches
from ..quarantine import DataError, Findings
from .column_names import check_distinct, used_columns
from .text_lines import Row

if TYPE_CHECKING:
    import datasets

PARQUET_ROWS = 64
"""The most that are decoded at once: rows that a file holds once and repeats are far longer than their share of it."""


def dataset_rows(
    dataset: datasets.Dataset, findings: Findings, texts: Collection[str], extras: Collection[str]
) -> Iterator[Row]:
    """Rows of a Dataset in its visible order (after select, shuffle, …)."""
    names = present_columns(dataset.features.arrow_schema, findings, texts, extras)
    if names:
        yield from arrow_rows(record_batches(dataset.select_columns(names)))


def parquet_rows(path: Path, findings: Findings, texts: Collection[str], extras: Collection[str]) -> Iterator[Row]:
    # Without the two options a column of a row group, which may be the whole file, is read into memory at once.
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            columns = present_columns(file.schema_arrow, findings, texts, extras)
            if columns:
                batches = file.iter_batches(rows_at_once(file.metadata), columns=columns, use_threads=False)
                yield from arrow_rows(batches)
        pa.default_memory_pool().release_unused()  # a page that was unpacked whole may be hundreds of megabytes
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a valid parquet file ({error}); write it again") from error


def parquet_columns(path: Path, findings: Findings, texts: Collection[str], extras: Collection[str]) -> list[str]:
    """`present_columns` of a file, without reading a row."""
    try:
        return present_columns(pq.read_schema(path), findings, texts, extras)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a valid parquet file ({error}); write it again") from error


def rows_at_once(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    longest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(PARQUET_ROWS, int(BATCH_BYTES / max(1, longest))))


def present_columns(
    schema: pa.Schema, findings: Findings, texts: Collection[str], extras: Collection[str]
) -> list[str]:
    """Those of `texts` and `extras` that the schema has. DataError where a column of texts has another type."""
    check_distinct(schema.names, used_columns(texts, extras), findings.here)
    findings.columns.update(dict.fromkeys(schema.names))
    for field in schema:
        known = findings.types.setdefault(field.name, field.type)
        findings.types[field.name] = field.type if known == field.type else None
    for name in set(schema.names).intersection(texts):
        kind = schema.field(name).type
        value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not is_text(value_kind) and value_kind != pa.null():
            raise DataError(f"{findings.here}: column {name!r} has type {kind}, not string; write it as text")
    return [name for name in schema.names if name in texts or name in extras]


def arrow_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    numbers = itertools.count(1)
    for batch in batches:
        rows = zip(*map(_python_values, batch.columns), strict=True)
        for row, position in zip(rows, numbers, strict=False):
            yield position, dict(zip(batch.schema.names, row, strict=True))


def _python_values(column: pa.Array) -> list[object]:
    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:  # as surrogates, which the check of the values finds in their row
        encoded = column.cast(pa.string()).cast(pa.binary()).to_pylist()
        return [value if value is None else value.decode("utf-8", "surrogateescape") for value in encoded]
    return values
