"""Rows that can't be used: what is wrong with each, and what becomes of them (refused, or left out and listed)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..system.atomic import write_text
from ..system.checksums import sha256_of
from ..system.redaction import redact_text

QUARANTINE = "quarantine.jsonl"
"""The list of rows that were left out."""

SHOWN = 5
"""Bad rows that a message quotes."""

MAX_BAD_ROWS = 100_000
"""More of them in one source are not gathered: whoever has so many reads none of them, and they would fill memory."""

SHOWN_CHARACTERS = 200
"""Of a bad row's text in the list of what was left out."""

ABSENT = object()
"""In place of a value that a row lacks."""

_JSON_NAMES = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "a list"}


class DataError(ValueError):
    """A user's data can't be used as it is; the message says what, where, and what to do."""


COLUMNS = re.compile(r"data\.columns\.(\S+?)=(\w+)")


@contextmanager
def said_of(source: str) -> Iterator[None]:
    """Says in a DataError which source of the mixture it is about, and how its columns are mapped there."""
    try:
        yield
    except DataError as error:
        if not source:
            raise
        text = COLUMNS.sub(r"columns: {\1: \2} (beside its path in data.mix)", str(error))
        raise DataError(f"data.mix, source {source}: {text}") from error


@dataclass(frozen=True)
class BadRow:
    position: int
    """Line or row, from 1."""
    fault: str
    """In the same words for the same kind of fault, so that they can be counted."""
    detail: str = ""
    """What goes on after the fault, and differs from row to row."""
    text: str = ""
    """How the row begins."""
    file: int = 0
    """Which of the source's files it is in, from 0."""

    @property
    def reason(self) -> str:
        return self.fault + self.detail


@dataclass
class Findings:
    """What a reader learns besides the rows: column names as they appear, and rows that can't be used."""

    where: str
    """The source as a whole."""
    files: list[tuple[str, str]] = field(default_factory=list)
    """(name, what is counted in it: "line" or "row") of each of its files; [] where it isn't read from files."""
    file: int = 0
    """Which of them is being read."""
    section: str = "data."
    """What stands before `columns` and `bad_rows` where these keys are typed."""
    tolerant: bool = False
    """Whether a row may be left out; then one that isn't UTF-8 doesn't spoil the rest."""
    columns: dict[str, None] = field(default_factory=dict)
    types: dict[str, Any] = field(default_factory=dict)
    """Column → its Arrow type, where the source has such; None where its files disagree."""
    bad: list[BadRow] = field(default_factory=list)

    def place(self, file: int) -> tuple[str, str]:
        """(name, what is counted in it) of a file, or of the source."""
        return self.files[file] if self.files else (self.where, "row")

    @property
    def here(self) -> str:
        return self.place(self.file)[0]

    def at(self, position: int, file: int | None = None) -> str:
        name, unit = self.place(self.file if file is None else file)
        return f"{name}:{position}" if unit == "line" else f"{name} row {position}"

    def error(self, position: int, reason: str) -> DataError:
        return DataError(f"{self.at(position)}: {reason}")

    def note(self, position: int, fault: str, detail: str = "", row: object = "", file: int | None = None) -> None:
        """One more bad row; `row` is its text, or its values by column. DataError when there are too many.

        file: which it is in, where reading has gone on since.
        """
        self.bad.append(BadRow(position, fault, detail, beginning(row), self.file if file is None else file))
        if len(self.bad) > MAX_BAD_ROWS:
            raise DataError(self.described(f"over {MAX_BAD_ROWS:,} bad rows", "Correct the file, then start again."))

    def raise_if_bad(self, any_other: bool = True) -> None:
        """Raises DataError with the first bad rows in file order, their total count and the remedy.

        any_other: whether there are good rows too; where there are none, leaving out the bad ones leaves nothing.
        """
        if self.bad:
            head = f"{len(self.bad)} bad row{'s' if len(self.bad) > 1 else ''}"
            leave_out = f"leave them out ({self.section}bad_rows=quarantine)"
            remedy = f"Correct or delete these rows, or {leave_out}, then start again."
            if not any_other:
                remedy = "There are no others: correct them, then start again."
            raise DataError(self.described(head, remedy))

    def described(self, head: str, remedy: str) -> str:
        shown = [f"  {self.at(row.position, row.file)}: {row.reason}" for row in self.in_order()[:SHOWN]]
        more = [f"  … and {len(self.bad) - len(shown)} more"] if len(self.bad) > len(shown) else []
        return "\n".join([f"{self.where}: {head}", *shown, *more, remedy])

    def in_order(self) -> list[BadRow]:
        return sorted(self.bad, key=lambda row: (row.file, row.position))


def fault_of(value: object) -> tuple[str, str] | None:
    """(what is wrong, what more there is to say of this value); None for a text."""
    if isinstance(value, str):
        if not value or value.isspace():
            return ("is only white space" if value else "is empty"), ""
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start]
            if "\udc80" <= half <= "\udcff":  # how readers hand on what they could not decode
                return "holds bytes that aren't UTF-8, or half a surrogate pair", f" ({half!a})"
            return "holds half a surrogate pair, which is no character", f" ({half!a})"
        return None
    if value is ABSENT:
        return "is missing", ""
    name = _JSON_NAMES.get(type(value), f"of type {type(value).__name__}")
    return f"is {name}, not a string", "" if value is None else f" ({beginning(value)[:40]})"


def beginning(row: object) -> str:
    """The first characters of a row, be it a line or values by column."""
    try:
        if isinstance(row, Mapping):
            row = {name: beginning(value) if isinstance(value, str) else value for name, value in row.items()}
            row = json.dumps(row, ensure_ascii=False, default=str)
        text = str(row)
    except ValueError:  # Python writes no integer of over 4,300 digits
        text = f"a {type(row).__name__}"
    return text[:SHOWN_CHARACTERS] + "…" if len(text) > SHOWN_CHARACTERS else text


@dataclass
class Quarantine:
    """Bad rows of one or several sources that are left out, as long as they are few."""

    max_share: float
    """Of a source's rows; where more are bad, it is refused."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """file, line or row, reason (a BadRow's fault), detail, text."""

    def admit(self, findings: Findings, good: int) -> None:
        """Takes in a source's bad rows; DataError where they are too large a share."""
        bad, total = len(findings.bad), len(findings.bad) + good
        if bad > self.max_share * total:
            head = f"{bad:,} of {total:,} rows are bad ({bad / total:.2%}), over max_bad_rows={self.max_share}"
            remedy = f"Correct or delete these rows, or raise {findings.section}max_bad_rows, then start again."
            raise DataError(findings.described(head, remedy))
        for row in findings.in_order():
            name, unit = findings.place(row.file)
            place = {"file": redact_text(name), unit: row.position}
            self.rows.append(place | {"reason": row.fault, "detail": row.detail, "text": row.text})

    def counts(self) -> dict[str, int]:
        """Reason → rows, the most frequent first."""
        return dict(Counter(row["reason"] for row in self.rows).most_common())

    def text(self) -> str:
        """One JSON object a line."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        # Half a surrogate pair becomes \udXXX, which is just how JSON writes it.
        return lines.encode("utf-8", "backslashreplace").decode()

    def write(self, path: Path) -> dict[str, Any]:
        """The list as a file; returns {"rows", "bytes", "sha256"} of it."""
        write_text(path, self.text())
        return {"rows": len(self.rows), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
