"""Files → rows, each read as its name says, one after the other."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..quarantine import DataError, Findings
from .column_names import used_columns
from .delimited import csv_rows
from .json_values import json_rows, jsonl_rows
from .split_names import FORMATS, file_format
from .text_lines import Row, txt_rows


def findings_of(files: Sequence[Path], source: str | Path) -> Findings:
    """What reading these files will fill."""
    units = ["row" if file_format(path) in (".json", ".parquet") else "line" for path in files]
    where = str(files[0]) if len(files) == 1 else str(source)
    return Findings(where, files=[(str(path), unit) for path, unit in zip(files, units, strict=True)])


def read_files(
    files: Sequence[Path], findings: Findings, texts: Collection[str], extras: Collection[str]
) -> Iterator[Row]:
    """Rows of the files in turn. Columns beside `texts` and `extras` (or EVERY_COLUMN) may be left unread.

    Raises DataError for an unknown format, an unreadable file, bytes that aren't UTF-8, and broken structure.
    """
    for number, path in enumerate(files):
        findings.file = number
        yield from read_file(path, findings, texts, extras)


def read_file(path: Path, findings: Findings, texts: Collection[str], extras: Collection[str]) -> Iterator[Row]:
    kind = file_format(path)
    if kind is None:
        raise DataError(f"{path}: unknown format; use one of {', '.join(FORMATS)} (all but .parquet also as .gz)")
    used = used_columns(texts, extras)
    try:
        if kind == ".parquet":
            from .tables import parquet_rows  # pyarrow and datasets take longer to import than a header to read

            yield from parquet_rows(path, findings, texts, extras)
        elif kind == ".json":
            yield from json_rows(path, findings, used)
        elif kind in (".csv", ".tsv"):
            yield from csv_rows(path, findings, "," if kind == ".csv" else "\t", used)
        elif kind == ".txt":
            yield from txt_rows(path, findings)
        else:
            yield from jsonl_rows(path, findings, used)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a complete gzip file ({error}); make or download it again") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error}); check it and its rights") from error
