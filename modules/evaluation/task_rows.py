"""What a task's rows hold beside their texts, and which part of them is asked, which expected."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..checkpoint.model_folder import read_provenance
from ..config.base import ConfigError, StageConfig
from ..config.data import DataConfig
from ..config.evaluation import TaskConfig
from ..config.loader import assign, to_dataclass
from ..data.arrow import fingerprint
from ..data.groups import GROUP, MIN_GROUPS, has_group
from ..data.mixing.copies import copies_among
from ..data.mixing.sources import split_name
from ..data.quarantine import DataError, Quarantine
from ..data.splits import load_training_rows
from .statistics import cluster_labels

SPLITS = ("train", "validation", "test")

OPENING = re.compile(r"[^，。！？；：、,.!?;:\n]+[，。！？；：、,.!?;:\n]?")

COLUMNS = {
    "rouge": ("references",),
    "bleu": ("references", "slots"),
    "chrf": ("references",),
    "exact_match": ("references",),
    "slots": ("references", "slots"),
    "choices": ("choices", "answer"),
}
"""Metric → columns that it looks for."""

REQUIRED = {
    "slots": ("slots",),
    "choices": ("answer", "choices"),
    **dict.fromkeys(("rouge", "bleu", "chrf", "exact_match", "length", "couplet"), ("tgt_txt",)),
}
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


def first_of_groups(rows: datasets.Dataset, numbers: Sequence[int], count: int) -> list[int]:
    """So many places in `numbers` of rows: the first of each group, as one text of a passage says enough of it; where
    there are fewer groups, also the second of each, and so on."""
    labels, before = groups_of(rows), Counter[str | int]()
    ranks = []
    for place, number in enumerate(numbers):
        label = labels[number] if labels and has_group(labels[number]) else number
        ranks.append((before[label], place))
        before[label] += 1
    return sorted(place for _, place in sorted(ranks)[:count])


def groups_of(rows: datasets.Dataset) -> list[str] | None:
    """Each row's group, as text; None where the rows have no such column."""
    return list(rows[GROUP]) if GROUP in rows.column_names else None


def usable_columns(rows: datasets.Dataset) -> tuple[datasets.Dataset, dict[str, str]]:
    """(rows without the columns that can't serve, column → why): somebody's own may just be named like one of ours."""
    ignored: dict[str, str] = {}
    for names, read in COLUMN_READERS.items():
        if set(names) <= set(rows.column_names):
            try:
                read(rows)
            except DataError as error:
                ignored |= dict.fromkeys(names, str(error))
    return rows.remove_columns(list(ignored)), ignored


def require_groups(rows: datasets.Dataset) -> None:
    """DataError where rows are in so few groups that no interval can be told: a label, or a speaker's sex, say."""
    labels = list(rows[GROUP])
    if len(rows) > 1 and len(set(labels)) == 1:
        raise DataError(f"all rows have the same group ({labels[0][:40] or 'empty'})")
    count = len(set(cluster_labels(labels)))
    if count < min(MIN_GROUPS, len(rows)):
        raise DataError(f"{count} groups are too few for intervals, which need {MIN_GROUPS}; each row counts alone")


def lacking(rows: datasets.Dataset, task: TaskConfig, ignored: Mapping[str, str]) -> dict[str, str]:
    """Metric → the column that these rows would need for it. DataError where no metric is left.

    ignored: columns that the rows have and that can't serve, with the reason.
    """
    required = [(metric, column) for metric in task.metrics for column in REQUIRED.get(metric, ())]
    missing = {metric: column for metric, column in required if column not in rows.column_names}
    if len(missing) == len(set(task.metrics)):
        wanted = "; ".join(f"the metric {metric} needs rows with {column}" for metric, column in missing.items())
        wanted += "".join(
            f"; {column} can't serve: {ignored[column]}" for column in missing.values() if column in ignored
        )
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
        value = parsed(text) if text else []
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


COLUMN_READERS: dict[tuple[str, ...], Callable[[datasets.Dataset], object]] = {
    (GROUP,): require_groups,
    ("references",): lambda rows: list(read_lists(rows, "references")),
    ("slots",): lambda rows: list(read_lists(rows, "slots")),
    ("choices", "answer"): read_choices,
}
"""Columns → what raises DataError where they can't be read."""


@dataclass(frozen=True)
class Trained:
    """What a model's run.yaml tells of the rows that it was trained on."""

    data: DataConfig
    seed: int
    """Of the rows that were held out for validation."""
    digests: dict[str, str]
    """Split → fingerprint of its rows."""
    templates: dict[str, str | None] = field(default_factory=dict)
    """Source of a mixture → how its rows were asked."""

    @property
    def sources(self) -> dict[str, Trained]:
        """Of a mixture each source by itself; without one this."""
        found = {name: self.of_source(name, data) for name, data in self.data.sources.items()}
        return found if self.data.mix else {"": self}

    def of_source(self, name: str, data: DataConfig) -> Trained:
        names = {split: split_name(split, name) for split in SPLITS}
        digests = {split: self.digests[full] for split, full in names.items() if full in self.digests}
        return Trained(replace(data, prompt_template=self.templates.get(name)), self.seed, digests)

    def source_with(self, data: DataConfig) -> Trained | None:
        """The source with the rows that a section names, by another path perhaps; of a mixture's the columns needn't be
        said again."""
        for source in self.sources.values():
            places = [os.path.abspath(each.path) if each.path else None for each in (data, source.data)]
            if places[0] == places[1] and (data.columns == source.data.columns or (self.data.mix and not data.columns)):
                return source
        return None


def trained_on(model: Path, cache_dir: str | None) -> Trained | None:
    """None where the model folder doesn't tell, or another version of moyun wrote what can't be understood."""
    origin = read_provenance(model)
    config, digests = origin.get("config"), origin.get("data")
    given = config.get("data") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(given, dict) or not isinstance(digests, dict):
        return None
    names = {key.name for key in fields(DataConfig)} - {"cache_dir"}
    complaints: list[str] = []
    known = [(str(key), value, "run.yaml") for key, value in given.items() if key in names and value is not None]
    try:
        data = to_dataclass(assign(DataConfig, known, complaints), complaints)
    except ConfigError:
        return None
    seed = config.get("seed")
    seed = seed if isinstance(seed, int) else StageConfig().seed
    templates = origin.get("prompt_templates")
    found = {str(name): str(value) for name, value in digests.items()}
    return Trained(replace(data, cache_dir=cache_dir), seed, found, templates if isinstance(templates, dict) else {})


def known_training_rows(model: Path, cache_dir: str | None) -> list[datasets.Dataset]:
    """The rows that a model was trained on, of each source of which its run.yaml names files that still hold them."""
    trained = trained_on(model, cache_dir)
    found = map(rows_of_source, trained.sources.values()) if trained else ()
    return [rows for rows in found if rows is not None]


def rows_of_source(trained: Trained) -> datasets.Dataset | None:
    """The training rows, where they are still there and as they were."""
    if "train" not in trained.digests or not trained.data.path or not Path(trained.data.path).exists():
        return None
    data = trained.data
    try:
        quarantine = Quarantine(data.max_bad_rows) if data.bad_rows == "quarantine" else None
        rows = load_training_rows(data, trained.seed, quarantine)
    except (ValueError, OSError, KeyError, TypeError):  # changed since then, or written by another version
        return None
    return rows if fingerprint(rows) == trained.digests["train"] else None


def copies_in_training(rows: datasets.Dataset, model: Path, cache_dir: str | None) -> np.ndarray | None:
    """Whether the model was trained on each row, (rows,) bool; None where its training rows aren't known."""
    found = [copies_among(rows, source) for source in known_training_rows(model, cache_dir)]
    return np.asarray(np.any(found, axis=0)) if found else None


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def first_sentence(text: str) -> str:
    """Up to the first full stop, question or exclamation mark or line's end that something stands before."""
    found = re.match(r"\s*[^。！？!?\n]+[。！？!?]?", text)
    return found.group().strip() if found else text
