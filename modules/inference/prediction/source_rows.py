"""The rows that are to be answered: read as often as needed, each with all its columns as they stand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...config.prediction import PredictConfig
from ...data.conversations.alpaca_rows import HISTORY, INPUT, OF_TALKS, columns_beside, turns, with_input
from ...data.conversations.message_rows import Conversation
from ...data.quarantine import ABSENT, DataError, Findings
from ...data.reading.column_names import EVERY_COLUMN, MESSAGES, check_mapping, check_present
from ...data.reading.finding import check_prepared, find_files, may_be_on_hub, nowhere
from ...data.sources import has_splits, open_source
from ...tokenizer.tokenizer import Tokenizer

EXACT = 2**53
"""Up to which every whole number is a float, too."""


class SourceRow(NamedTuple):
    file: int
    position: int
    """Line or row, from 1."""
    values: Mapping[str, object]


@dataclass
class Survey:
    """What there is to know of rows before any is answered."""

    rows: int = 0
    columns: dict[str, set[str]] = field(default_factory=dict)
    """Column → of which kinds its values are: text, boolean, integer, long, float, other."""
    types: Mapping[str, Any] = field(default_factory=dict)
    """Column → its Arrow type, where the source has such."""
    digest: str = ""
    """SHA-256 over all rows with all their columns, hexadecimal."""


class Source:
    """Rows of anything that the readers of modules/data take."""

    def __init__(self, config: PredictConfig) -> None:
        """DataError where there is no such source, or it has several splits."""
        self.place, self.split, self.mapping = config.source, config.split, config.columns
        self.return_full_text = config.return_full_text
        known = check_mapping(config.columns, "")
        self.texts = {target: known[target] for target in ("src_txt", MESSAGES) if target in known}
        """What is read → the column that may hold it."""
        self.column = next(iter(self.texts.values()))
        """Which holds the text, or the conversation."""
        self.beside = columns_beside(config.columns)
        """Columns of Alpaca's layout that the prompts are made of too."""
        self.in_turns = False
        """Whether these make conversations of them; once a survey has told."""
        self.findings = Findings(self.place)
        check_prepared(self.place)
        if self.split is None and has_splits(self.place) and (Path(self.place).exists() or may_be_on_hub(self.place)):
            raise DataError(f"source={self.place} has splits: say whose rows to answer, split=test or another")
        self.files = find_files(self.place, self.split) or []
        """Those that are read; [] of a dataset of the hub."""
        if not self.files and not may_be_on_hub(self.place):
            raise nowhere(self.place)

    def __iter__(self) -> Iterator[SourceRow]:
        """All rows in order. DataError at the end where some lines weren't rows at all."""
        texts = [name for target, name in self.texts.items() if target != MESSAGES]
        self.findings, rows = open_source(self.place, self.split, texts, EVERY_COLUMN)
        self.findings.section = ""
        for position, values in rows:
            yield SourceRow(self.findings.file, position, values)
        if bad := len(self.findings.bad):
            head = f"{bad} bad row{'s' if bad > 1 else ''}, with no columns to keep"
            raise DataError(self.findings.described(head, "Correct or delete them, then start again."))

    def survey(self) -> Survey:
        """Reads all rows once. DataError for lines that are no rows, and where no column holds the text."""
        found, digest = Survey(), hashlib.sha256()
        for _, _, values in self:
            found.rows += 1
            digest.update(fingerprint_of(values))
            for name, value in values.items():
                found.columns.setdefault(name, set()).update(kinds_of(value))
        if not found.rows:
            raise DataError(f"{self.findings.where} has no rows")
        check_present(self.findings, self.mapping, self.texts)
        self.column = next(name for name in self.texts.values() if name in self.findings.columns)
        self.in_turns = not self.findings.columns.keys().isdisjoint({*self.beside} & {*OF_TALKS})
        found.columns = {name: found.columns.get(name, set()) for name in self.findings.columns}
        found.types, found.digest = self.findings.types, digest.hexdigest()
        return found

    def unchanged(self, survey: Survey) -> Iterator[SourceRow]:
        """All rows once more. DataError at the end unless they are those of the survey."""
        digest = hashlib.sha256()
        for row in self:
            digest.update(fingerprint_of(row.values))
            yield row
        if digest.hexdigest() != survey.digest:
            raise DataError(
                f"source={self.place} changed while it was read: nothing was written; start again with force=true when "
                "nothing writes to it any more"
            )

    @property
    def holds_conversations(self) -> bool:
        return self.in_turns or self.column == self.texts.get(MESSAGES)

    def answered_in_full(self, tokenizer: Tokenizer) -> bool:
        """Whether answers begin with the prompt; once a survey has told what there is to be answered."""
        continues = tokenizer.prompt_template is None and not self.holds_conversations
        return continues if self.return_full_text is None else self.return_full_text

    def asked(self, row: SourceRow) -> object:
        """What stands there to be answered."""
        value = row.values.get(self.column, ABSENT)
        if INPUT in self.beside:
            value = with_input(value, row.values.get(INPUT))
        if self.in_turns:
            value = turns(row.values.get(HISTORY), value)
        return Conversation(value, row.values) if self.holds_conversations else value

    def at(self, row: SourceRow) -> str:
        """Where it stands: rows.csv:17."""
        return self.findings.at(row.position, row.file)


def fingerprint_of(values: Mapping[str, object]) -> bytes:
    text = json.dumps(list(values.items()), ensure_ascii=False, default=str)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def kinds_of(value: object) -> set[str]:
    """What a column that has such a value must be able to hold; nothing for a missing one."""
    if value is None:
        return set()
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer" if abs(value) <= EXACT else "long" if -(2**63) <= value < 2**63 else "other"}
    return {"text" if isinstance(value, str) else "float" if isinstance(value, float) else "other"}
