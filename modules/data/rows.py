"""Rows: users' own data → a `datasets.Dataset` with string columns src_txt and, if present, tgt_txt; of conversations
their last turn, and all of it in messages (conversations/message_rows.py).

Every value is the text that stands in the file: nothing is inferred, stripped, normalised or filled in. What
can't be taken as it stands is refused (or left out, if so asked), all bad rows at once, with file, line and reason.
"""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets

from ..system.cache import cached, writing
from .arrow import write_arrow
from .conversations.alpaca_rows import columns_beside, read_beside
from .conversations.message_rows import BESIDE, Fault, as_columns, read_conversation
from .preferences.pair_rows import read_pairs
from .quarantine import ABSENT, BadRow, DataError, Findings, Quarantine, fault_of
from .reading.column_names import MESSAGES, NEAR, TEXT_COLUMNS, check_mapping, nearest
from .reading.files import check_unchanged, content_of
from .reading.headers import check_columns
from .reading.pair_columns import TARGETS, check_pair_mapping, columns_of_pairs
from .reading.text_lines import Row
from .sources import RowSource, files_of, is_mapped, open_source

TABLE = "rows.arrow"
BAD_ROWS = "bad_rows.json"

RULES = 6
"""Raised when the same file gives other rows: what earlier versions made of it is then not found."""

_BATCH_ROWS, _BATCH_CHARACTERS = 10_000, 4_000_000
_Batches = Iterator[dict[str, list[str]]]
T = TypeVar("T")


def load_rows(
    source: RowSource,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    max_rows: int | None = None,
    cache: Path | None = None,
    quarantine: Quarantine | None = None,
    extras: Collection[str] = (),
    section: str = "data.",
    seen: dict[str, None] | None = None,
    pairs: bool = False,
) -> datasets.Dataset:
    """All rows of `source`, in order, as a Dataset of string columns; other columns are dropped.

    source: a file (.csv .tsv .json .jsonl .ndjson .txt, also with .gz; .parquet), several as "[a.csv,b.csv]" or
        "data/*.csv", a folder of split files such as train.csv or of files alone, a folder written by
        `save_to_disk`, a Dataset, a DatasetDict, {"src_txt": […]}, a list of dicts or of texts, or, where no such
        path exists, the name of a Hugging Face hub dataset.
    columns: the user's name → src_txt, tgt_txt or messages, as ModelScope's `remap_columns` takes it, or one of
        OTHER_COLUMNS, which is then kept as an extra.
    split: which file of a folder or split of a hub dataset; "train" by default. Refused other than as "train"
        where the source has no splits, so that training rows never pass for validation rows.
    max_rows: read no further than that many rows; what follows is not checked.
    cache: where files of any size are kept as a table that is mapped into memory; a file of the same content is
        not read and checked a second time. None: all rows in memory.
    quarantine: takes the bad rows, if they are few enough for it. None: one bad row is refused like all.
    extras: further columns to keep where there are such, as text (`as_text`): nothing in them makes a row bad.
    section: what stands before the key `columns` where it is typed, for messages.
    seen: takes the names of all columns that there are, unless the rows come from the cache.
    pairs: read preference rows, as preferences/pair_rows.py has them.

    Raises DataError naming the file, the line or row, the reason and the remedy.
    """
    columns = columns or {}
    origin = check_pair_mapping(columns, section) if pairs else check_mapping(columns, section)
    if max_rows is not None and max_rows < 1:
        raise DataError(f"max_rows={max_rows}: must be 1 or more; leave it out to read all rows")
    beside = {name: name for name in sorted(extras) if name not in columns}
    learnt = TARGETS if pairs else (*TEXT_COLUMNS, MESSAGES)
    beside |= {target: name for target, name in origin.items() if target not in learnt}
    texts = {target: name for target, name in origin.items() if target in learnt}
    request = _Request(source, columns, texts, split, max_rows, quarantine is not None, beside, section, pairs)
    files = files_of(source, split) if cache else None
    if cache and files:
        rows, findings = _cached(request, files, cache)
    elif cache and is_mapped(source, split):
        rows, findings = _on_disk(request, cache)
    else:
        rows, findings = request.read(_in_memory)
    if quarantine:
        quarantine.admit(findings, good=len(rows))
    if seen is not None:
        seen.update(findings.columns)
    return rows


class _LateColumnError(Exception):
    """Rows before lack a column that only shows now: they have to be checked anew. args: all columns so far."""


@dataclass(frozen=True)
class _Request:
    """What load_rows was asked for, checked."""

    source: RowSource
    columns: Mapping[str, str]
    origin: Mapping[str, str]
    split: str | None
    max_rows: int | None
    tolerant: bool
    extras: Mapping[str, str]
    """Name in the Dataset → the user's name."""
    section: str
    pairs: bool

    def opened(self, known: Collection[str] = ()) -> tuple[Findings, Iterator[Row]]:
        """known: columns that rows have to have, though the first ones may lack them."""
        texts = [name for target, name in self.origin.items() if target != MESSAGES and not self.pairs]
        others = [*self.extras.values(), *([self.origin[MESSAGES], *BESIDE] if MESSAGES in self.origin else [])]
        others += columns_of_pairs(self.origin) if self.pairs else columns_beside(self.columns)
        findings, rows = open_source(self.source, self.split, texts, others)
        findings.columns.update(dict.fromkeys(known))
        findings.tolerant, findings.section = self.tolerant, self.section
        return findings, itertools.islice(rows, self.max_rows)

    def read(self, consume: Callable[[_Batches], T]) -> tuple[T, Findings]:
        """`consume` of the rows' texts, with what was found on the way; it may be started anew."""
        known: Collection[str] = ()
        while True:
            findings, rows = self.opened(known)
            try:
                return consume(_checked(findings, rows, self)), findings
            except _LateColumnError as more:
                known = more.args


def _cached(request: _Request, files: list[Path], cache: Path) -> tuple[datasets.Dataset, Findings]:
    content = content_of(files)
    columns = sorted(request.columns.items())
    key: dict[str, Any] = {"rules": RULES, "files": content, "columns": columns, "max_rows": request.max_rows}
    columns_seen: dict[str, None] = {}

    def build(folder: Path) -> None:
        try:
            _, findings = request.read(functools.partial(write_arrow, folder / TABLE))
            columns_seen.update(findings.columns)
        except DataError:
            check_unchanged(files, content)  # what was found wrong may be half of what somebody writes
            raise
        check_unchanged(files, content)
        if request.tolerant:
            (folder / BAD_ROWS).write_text(json.dumps([asdict(row) for row in findings.bad]), encoding="utf-8")

    # Keys that only some requests have.
    key |= {"extras": ",".join(request.extras)} if request.extras else {}
    key |= {name: True for name in ("tolerant", "pairs") if getattr(request, name)}
    entry = cached(cache, "rows", key, build)
    findings, _ = request.opened(columns_seen)
    if request.tolerant:
        kept = json.loads((entry / BAD_ROWS).read_text(encoding="utf-8"))
        findings.bad = [BadRow(**row) for row in kept]
    return datasets.Dataset.from_file(str(entry / TABLE)), findings


def _on_disk(request: _Request, cache: Path) -> tuple[datasets.Dataset, Findings]:
    """Mapped from a file that is deleted at once: its bytes stay until nobody maps them."""
    with writing(cache), tempfile.TemporaryDirectory(".rows", ".", cache) as folder:
        _, findings = request.read(functools.partial(write_arrow, Path(folder) / TABLE))
        return datasets.Dataset.from_file(str(Path(folder) / TABLE)), findings


def _in_memory(batches: _Batches) -> datasets.Dataset:
    values: dict[str, list[str]] = {}
    for batch in batches:
        for name, texts in batch.items():
            values.setdefault(name, []).extend(texts)
    features = datasets.Features({name: datasets.Value("string") for name in values})
    return datasets.Dataset.from_dict(values, features=features)


def _checked(findings: Findings, rows: Iterator[Row], request: _Request) -> _Batches:
    """The good rows' texts batch by batch. Once the last is read, DataError for all bad rows; where these are
    tolerated, only if there are no others."""
    present: dict[str, str] | None = None
    any_good = False
    beside = () if request.pairs else columns_beside(request.columns)
    wanted = {**request.origin, **request.extras, **{name: name for name in beside}}
    for batch in _in_batches(rows, findings):
        before = present
        present = {target: name for target, name in wanted.items() if name in findings.columns}
        if before not in (None, present):
            raise _LateColumnError(*present.values())
        values = {target: [row.get(name, ABSENT) for _, (_, row) in batch] for target, name in present.items()}
        for name in request.extras.keys() & values:
            values[name] = [as_text(value) for value in values[name]]
        given = [row for _, (_, row) in batch]
        values = read_beside(values, given) if beside else values
        conversations, faults = (_pairs if request.pairs else _conversations)(values, given, request.origin)
        texts_alone = {name: column for name, column in values.items() if name not in request.extras}
        bad = _note_bad_values(findings, batch, texts_alone, {} if request.pairs else wanted, faults)
        values = conversations | values
        if bad and findings.tolerant:
            good = [index for index in range(len(batch)) if index not in bad]
            values = {name: [texts[index] for index in good] for name, texts in values.items()} if good else {}
        any_good = any_good or len(bad) < len(batch)
        if values and (findings.tolerant or not findings.bad):
            yield values  # type: ignore[misc]  # checked to be texts
    if not findings.columns and not findings.bad:
        raise DataError(f"{findings.where} has no rows")
    if findings.columns:
        check_columns(findings, request.columns, request.origin, request.pairs)
    if not (findings.tolerant and any_good):
        findings.raise_if_bad(any_other=any_good)
    if present is None:
        raise DataError(f"{findings.where} has no rows")


def _pairs(
    values: dict[str, list[object]], rows: list[Mapping[str, object]], origin: Mapping[str, str]
) -> tuple[dict[str, list[Any]], dict[int, Fault]]:
    """`_conversations` of preference rows, whose columns `values` is rid of."""
    for name in origin:
        values.pop(name, None)
    return read_pairs(rows, origin)


def _conversations(
    values: dict[str, list[object]], rows: list[Mapping[str, object]], _: Mapping[str, str]
) -> tuple[dict[str, list[Any]], dict[int, Fault]]:
    """(columns of rows that are conversations, what is wrong with some of them); `values` is rid of the column."""
    given = values.pop(MESSAGES, None)
    if given is None or not values.keys().isdisjoint(TEXT_COLUMNS):  # both are refused, once all columns are known
        return {}, {}
    read = list(map(read_conversation, given, rows))
    return as_columns([messages for messages, _ in read]), {row: fault for row, (_, fault) in enumerate(read) if fault}


def as_text(value: object) -> str:
    """Of a column beside the texts: text as it is, lists and numbers as JSON, and "" where there is nothing."""
    if value is None or value is ABSENT or value != value:  # NaN, as pandas writes what is missing
        return ""
    if isinstance(value, (bool, int, float, list, dict)):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return str(value).encode("utf-8", "replace").decode()


def _in_batches(rows: Iterable[Row], findings: Findings) -> Iterator[list[tuple[int, Row]]]:
    """As many rows as make up a few megabytes, each with the number of its file: a batch may span several."""
    batch: list[tuple[int, Row]] = []
    characters = 0
    for row in rows:
        batch.append((findings.file, row))
        characters += sum(map(size_of, row[1].values()))
        if len(batch) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def size_of(value: object) -> int:
    """About how many characters a value has, also of a list or object that no column needs."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    return sum(map(size_of, value)) if isinstance(value, (list, tuple)) else 8


def _note_bad_values(
    findings: Findings,
    batch: list[tuple[int, Row]],
    values: Mapping[str, list[object]],
    origin: Mapping[str, str],
    conversations: Mapping[int, Fault],
) -> set[int]:
    """Notes the rows of a batch that hold something else than text, or such conversations; returns which they are."""
    labels = {MESSAGES: "the conversation"} | {
        target: target if name == target else f"{target} (column {name!r})" for target, name in origin.items()
    }
    talk = f"{labels[MESSAGES]} " if origin else ""  # preferences say themselves which column it is
    faults = {row: [(f"{talk}{fault}", more)] for row, (fault, more) in conversations.items()}
    for target, column in values.items():
        label = labels[target]
        for index, value in enumerate(column):
            fault = fault_of(value)
            if fault:
                if value is ABSENT and (near := nearest(origin[target], batch[index][1][1], NEAR)):
                    fault = fault[0], f" (but there is {near!r}: name the column alike in all rows)"
                faults.setdefault(index, []).append((f"{label} {fault[0]}", fault[1]))
    for index, found in faults.items():
        file, (position, row) = batch[index]
        reason = " and ".join(fault for fault, _ in found)
        findings.note(position, reason, "".join(more for _, more in found), row, file)
    return set(faults)
