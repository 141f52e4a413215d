"""Comma- and tab-separated files with a header line, also as spreadsheets write them."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from ..quarantine import Findings
from . import text_lines
from .column_names import check_distinct
from .text_lines import LONE_CR, LONE_CR_REMEDY, Row, kind_of_line, read_lines

_EXCEL_SEPARATOR = re.compile(r'"?sep=."?,*')

_BLANK_BEFORE_QUOTE = re.compile(r'[ \t]+"')


class _Lines(Iterator[str]):
    """Passes lines on and remembers those of the record that is being read."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines = lines
        self.record: list[str] = []

    def __next__(self) -> str:
        line = next(self.lines)
        self.record.append(line)
        return line


def _csv_records(
    lines: Iterator[str], findings: Findings, delimiter: str
) -> Iterator[tuple[int, list[str], list[str]]]:
    """(line, values, the record's lines as they stand)."""
    # The csv module's own limit, 128 KiB, is shorter than a long chapter.
    csv.field_size_limit(text_lines.MAX_LINE_BYTES)
    source = _Lines(lines)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        position = reader.line_num + 1
        source.record = []
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
            findings.note(position, fault, remedy, source.record[-1])
            continue
        if record:
            yield position, record, source.record


def csv_rows(path: Path, findings: Findings, delimiter: str, used: Collection[str]) -> Iterator[Row]:
    """Rows of a comma- or tab-separated file with a header line; blank lines are skipped.

    used: columns that may not stand twice. What has no name is of no use and does no harm, however long the rows.
    """
    header: list[str] = []
    named = 0
    for position, record, lines in _csv_records(read_lines(path, findings), findings, delimiter):
        if not header:
            header = record
            if kind_of_line(lines[0]) in (".json", ".jsonl"):
                raise findings.error(position, f"JSON in a {path.suffix}; rename the file to .jsonl")
            if _EXCEL_SEPARATOR.fullmatch(lines[0].strip()):
                raise findings.error(position, f"{lines[0].strip()} is for Excel alone; delete this line")
            if len(header) > 1 and not any(map(str.strip, header)):
                raise findings.error(position, "a line of blanks where the columns' names should be; delete it")
            check_distinct(header, used, findings.at(position))
            named = max((number for number, name in enumerate(header, 1) if name.strip()), default=len(header))
            nameless = not any(map(str.strip, header))
            findings.columns.update((name, None) for name in header if name.strip() or nameless or name in used)
        elif any(map(_BLANK_BEFORE_QUOTE.match, _of_use(record, header, used))) and _has_blank_before_quote(
            "".join(lines), delimiter
        ):
            fault = "a blank before a quote makes both part of the text"
            findings.note(position, fault, "; remove the blank", "".join(lines))
        elif len(record) < named or any(value.strip() for value in record[len(header) :]):
            remedy = f"; quote values that hold {delimiter!r}"
            fault = f"{len(record)} values for {len(header)} columns"
            findings.note(position, fault, remedy, delimiter.join(record))
        else:
            values = zip(header, record, strict=False)
            yield position, {name: value for name, value in values if name.strip() or name in used}


def _of_use(record: list[str], header: list[str], used: Collection[str]) -> list[str]:
    """The values that are read; all where there are more or fewer than columns, as any may have been cut wrongly."""
    if len(record) != len(header):
        return record
    return [value for name, value in zip(header, record, strict=True) if name in used]


def _has_blank_before_quote(text: str, delimiter: str) -> bool:
    """Whether a value begins so as it stands, and not within quotes that are right."""
    return bool(re.search(rf'(^|{re.escape(delimiter)})[ \t]+"(?!")', text))
