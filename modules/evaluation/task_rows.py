"""What a task's rows hold beside their texts, and which part of them is asked, which expected."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets

from ..config.data import DataConfig
from ..config.evaluation import TaskConfig
from ..data.quarantine import DataError

OPENING = re.compile(r"[^，。！？；：、,.!?;:\n]+[，。！？；：、,.!?;:\n]?")

COLUMNS = {
    "rouge": ("references",),
    "bleu": ("references", "slots"),
    "exact_match": ("references",),
    "slots": ("references", "slots"),
    "choices": ("choices", "answer"),
}
"""Metric → columns that it looks for."""

GROUP = "group"
"""A column that says which rows hang together, being cut from one poem or about one passage; see statistics.py."""

REQUIRED = {"slots": ("slots",), "choices": ("answer", "choices"), "couplet": ("tgt_txt",)}
"""Metric → columns that it can't do without."""


@dataclass(frozen=True)
class TaskRow:
    """One row, to be answered and scored."""

    source: str
    """src_txt; of a row of plain text its first clause, to be continued."""
    references: list[str]
    """Texts that would be right, the target first; of plain text its rest."""
    slots: list[str] = field(default_factory=list)
    """Values that an answer must say."""
    continued: bool = False
    """Whether the answer goes on with the source, and is no text of its own."""


def columns_of(task: TaskConfig, data: DataConfig) -> set[str]:
    """Columns to keep for this task's metrics; a column that the user maps to a text is that text."""
    return {GROUP, *(name for metric in task.metrics for name in COLUMNS.get(metric, ()))} - set(data.columns)


def groups_of(rows: datasets.Dataset) -> list[str] | None:
    """Each row's group, as text; None where the rows have no such column."""
    return list(rows[GROUP]) if GROUP in rows.column_names else None


def lacking(rows: datasets.Dataset, task: TaskConfig) -> dict[str, str]:
    """Metric → the column that these rows would need for it. DataError where no metric is left."""
    required = [(metric, column) for metric in task.metrics for column in REQUIRED.get(metric, ())]
    missing = {metric: column for metric, column in required if column not in rows.column_names}
    if len(missing) == len(set(task.metrics)):
        wanted = "; ".join(f"the metric {metric} needs rows with {column}" for metric, column in missing.items())
        raise DataError(
            f"{wanted}; these have {', '.join(rows.column_names)}: name other task.metrics, or give other rows"
        )
    return missing


def with_targets(rows: datasets.Dataset) -> datasets.Dataset:
    """Rows with choices but no tgt_txt get the right choice as theirs."""
    if "tgt_txt" in rows.column_names or not {"choices", "answer"} <= set(rows.column_names):
        return rows
    return rows.add_column("tgt_txt", [choices[answer] for choices, answer in read_choices(rows)])


def read_task_rows(rows: datasets.Dataset) -> list[TaskRow]:
    """DataError naming the row whose references or slots can't be used."""
    targets = rows["tgt_txt"] if "tgt_txt" in rows.column_names else [None] * len(rows)
    references, slots = read_lists(rows, "references"), read_lists(rows, "slots")
    found = []
    for source, target, others, values in zip(rows["src_txt"], targets, references, slots, strict=True):
        plain = target is None
        if plain:
            opening = OPENING.match(source)
            source, target = (opening.group(), source[opening.end() :]) if opening else (source, "")
        found.append(TaskRow(source, list(dict.fromkeys([target, *others])), values, plain))
    return found


def read_lists(rows: datasets.Dataset, name: str) -> Iterator[list[str]]:
    """Each row's list in that column, empty where there is no such column."""
    for number, text in enumerate(rows[name] if name in rows.column_names else ["[]"] * len(rows), 1):
        value = parsed(text)
        if not isinstance(value, list) or not all(isinstance(part, str) and part for part in value):
            raise DataError(f'row {number}: {name} ({text[:40]}) must be a list of texts, e.g. ["甲", "乙"]')
        yield value


def read_choices(rows: datasets.Dataset) -> list[tuple[list[str], int]]:
    """(choices, the right one's number) of each row. DataError naming the row where they aren't."""
    found = []
    for number, (choices, text) in enumerate(zip(read_lists(rows, "choices"), rows["answer"], strict=True), 1):
        answer = parsed(text)
        if len(choices) < 2:
            raise DataError(f"row {number}: choices holds {len(choices)}; give two or more")
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
            raise DataError(f"row {number}: answer ({text[:40]}) must be a number from 0 to {len(choices) - 1}")
        found.append((choices, answer))
    return found


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def first_sentence(text: str) -> str:
    """Up to the first full stop, question or exclamation mark or line's end that something stands before."""
    found = re.match(r"\s*[^。！？!?\n]+[。！？!?]?", text)
    return found.group().strip() if found else text
