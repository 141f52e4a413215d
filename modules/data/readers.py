"""Readers: a file, dataset or Python container → numbered raw rows, with no type inference anywhere.

Each reader is a generator of (position, row). The position is what a person looks for in an editor: the
1-based line of the file where the row starts (csv, tsv, jsonl, txt), else the 1-based row. A fault in one row
is noted in `Findings`, so that all of them are seen at once; one that spoils the rest raises DataError.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, cast

import datasets
import pyarrow as pa

from .quarantine import DataError, Findings

MAX_LINE_BYTES = 10_000_000  # one 50 MB line would otherwise take over 600 MB of memory before anyone notices

MAX_JSON_BYTES = 1_000_000_000
"""Of a .json file, which is read whole, unpacked."""

LONE_CR = "carriage return inside the line"
LONE_CR_REMEDY = "; end the lines with \\n (tr '\\r' '\\n')"

Row = tuple[int, Mapping[str, object]]


def dataset_rows(
    dataset: datasets.Dataset, findings: Findings, texts: Collection[str], extras: Collection[str]
) -> Iterator[Row]:
    """Rows of a Dataset in its visible order (after select, shuffle, …).

    Goes past the Dataset's own access, which gathers shuffled rows one by one: 6 s for 320k rows, here 0.1 s.
    """
    columns = {
        name: dataset.data.column(name)
        for name in present_columns(dataset.features.arrow_schema, findings, texts, extras)
    }
    for name in columns.keys() & texts:
        columns[name] = columns[name].cast(pa.large_string())  # take() on string overflows its 32-bit offsets past 2 GB
    if dataset._indices is not None:
        columns = {name: column.take(dataset._indices.column(0)) for name, column in columns.items()}
    if columns:
        yield from arrow_rows(pa.table(columns).to_batches(max_chunksize=10_000))


def column_rows(table: Mapping[str, object], findings: Findings) -> Iterator[Row]:
    """Rows of {"column": [value, …], …}; DataError unless all are lists of one length."""
    for name, values in table.items():
        if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
            raise DataError(
                f"{findings.where}: column {name!r} is a {type(values).__name__}, not a list;"
                ' write a list of objects or {"column": [value, …]}'
            )
    findings.columns.update(dict.fromkeys(table))
    columns = cast("Mapping[str, Sequence[object]]", table)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{findings.where}: columns differ in length: {lengths}; give each the same number of rows")
    for position, values in enumerate(zip(*columns.values(), strict=True), 1):
        yield position, dict(zip(columns, values, strict=True))


def object_rows(objects: Iterable[object], findings: Findings) -> Iterator[Row]:
    """Rows of [{"column": value, …}, …]; anything but an object is noted as a bad row."""
    for position, row in enumerate(objects, 1):
        if isinstance(row, Mapping):
            findings.columns.update(dict.fromkeys(row))
            yield position, row
        else:
            findings.note(position, f"a {type(row).__name__}, not an object with columns", row=row)


def present_columns(
    schema: pa.Schema, findings: Findings, texts: Collection[str], extras: Collection[str]
) -> list[str]:
    """Those of `texts` and `extras` that the schema has. DataError where a column of texts has another type."""
    check_distinct(schema.names, findings.where)
    findings.columns.update(dict.fromkeys(schema.names))
    for name in set(schema.names).intersection(texts):
        kind = schema.field(name).type
        value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if value_kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
            raise DataError(f"{findings.where}: column {name!r} has type {kind}, not string; write it as text")
    return [name for name in schema.names if name in texts or name in extras]


def check_distinct(names: Sequence[str], place: str) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{place}: duplicate columns {repeated}; rename or remove all but one")


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


def _open_binary(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _decode(raw: bytes, path: Path, first_line: int, tolerant: bool = False) -> str:
    """tolerant: bytes that aren't UTF-8 become surrogates, which the check of the values finds in their row."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if tolerant:
            return raw.decode("utf-8", "surrogateescape")
        line = first_line + raw.count(b"\n", 0, error.start)
        byte = error.start - raw.rfind(b"\n", 0, error.start)
        utf16 = first_line == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        encoding = "UTF-16" if utf16 else "GBK"
        raise DataError(
            f"{path}:{line}: byte {byte} of the line (0x{raw[error.start]:02x}) is not UTF-8; convert the file with"
            f" iconv -f {encoding} -t UTF-8 (its true encoding in place of {encoding} if that fails)"
        ) from error
    # Editors on Windows put a byte order mark first; kept, it would become part of the first column's name.
    return text.removeprefix("\ufeff") if first_line == 1 else text


def _lines(path: Path, findings: Findings) -> Iterator[str]:
    """Lines with their line ends. Split at \\n alone: splitlines would also cut at U+2028 inside a text."""
    with _open_binary(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(
                    f"{path}:{number}: line over {MAX_LINE_BYTES // 1_000_000} MB;"
                    " split it into several rows, and check that the line ends are \\n"
                )
            # Of the first line, a header or a byte order mark, everything else depends.
            yield _decode(raw, path, number, findings.tolerant and number > 1)


def txt_rows(path: Path, findings: Findings) -> Iterator[Row]:
    findings.columns["src_txt"] = None
    for number, line in enumerate(_lines(path, findings), 1):
        text = line.removesuffix("\n").removesuffix("\r")
        if "\r" in text and not text.isspace():
            findings.note(number, LONE_CR, LONE_CR_REMEDY, text)
        elif text and not text.isspace():
            yield number, {"src_txt": text}


def _csv_records(lines: Iterator[str], findings: Findings, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    # The csv module's own limit, 128 KiB, is shorter than a long chapter.
    csv.field_size_limit(MAX_LINE_BYTES)
    last = ""

    def remembered() -> Iterator[str]:
        nonlocal last
        for line in lines:
            last = line
            yield line

    reader = csv.reader(remembered(), delimiter=delimiter, strict=True)
    while True:
        position = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # Only these two swallow the rest of the file; after others the reader is in step a line later.
            if "unexpected end" in str(error) or "field limit" in str(error):
                reason = f"a quote opened in this row is never closed ({error}); close it, or double it"
                raise findings.error(position, reason) from error
            fault, remedy = "not valid CSV", f" ({error}); double quotes inside a quoted value"
            if "new-line character" in str(error):  # whose message tells how to open a file in Python
                fault, remedy = LONE_CR, LONE_CR_REMEDY
            if not findings.columns:
                raise findings.error(position, f"{fault}{remedy}") from error
            findings.note(position, fault, remedy, last)
            continue
        if record:
            yield position, record


def csv_rows(path: Path, findings: Findings, delimiter: str) -> Iterator[Row]:
    """Rows of a comma- or tab-separated file with a header line; blank lines are skipped."""
    header: list[str] = []
    for position, record in _csv_records(_lines(path, findings), findings, delimiter):
        if not header:
            header = record
            check_distinct(header, findings.at(position))
            findings.columns.update(dict.fromkeys(header))
        elif len(record) == len(header):
            yield position, dict(zip(header, record, strict=True))
        else:
            remedy = f"; quote values that hold {delimiter!r}"
            fault = f"{len(record)} values for {len(header)} columns"
            findings.note(position, fault, remedy, delimiter.join(record))


def _object_without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is given twice")
    return row


# Made once: json.loads would build a new decoder on every line, since it is given a hook.
_DECODER = json.JSONDecoder(object_pairs_hook=_object_without_repeats)


def jsonl_rows(path: Path, findings: Findings) -> Iterator[Row]:
    for number, line in enumerate(_lines(path, findings), 1):
        if line.isspace():
            continue
        try:
            row = _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            reason = str(error)
            if isinstance(error, json.JSONDecodeError):
                reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
            findings.note(number, "invalid JSON", f" ({reason})", line)
            continue
        if isinstance(row, dict):
            findings.columns.update(dict.fromkeys(row))
            yield number, row
        else:
            findings.note(number, f"a JSON {type(row).__name__}, not an object with columns", row=line)


def json_rows(path: Path, findings: Findings) -> Iterator[Row]:
    with _open_binary(path) as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise DataError(f"{path}: over {MAX_JSON_BYTES // 1_000_000} MB; write an object a line, as .jsonl, instead")
    text = _decode(raw, path, 1)
    if not text.strip():
        return
    try:
        content = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        hint = "one object a line belongs in a .jsonl file" if error.msg == "Extra data" else "correct it"
        fault = f"{error.msg.removesuffix(' at')}, column {error.colno}"
        raise DataError(f"{path}:{error.lineno}: invalid JSON ({fault}); {hint}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: invalid JSON ({error}); correct it") from error
    if isinstance(content, dict):
        yield from column_rows(content, findings)
    elif isinstance(content, list):
        yield from object_rows(content, findings)
    else:
        raise DataError(f'{path}: a JSON {type(content).__name__}; write a list of objects or {{"column": [value, …]}}')
