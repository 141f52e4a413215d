"""An evaluation on the terminal: what will be done, and its results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import datasets
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri
from rich.table import Table

from modules.data.groups import count_of_other_groups
from modules.data.splits import groups_are_named, kind_of_rows
from modules.evaluation.report.build import PER_TOKEN
from modules.evaluation.statistics import Metric, rows_in_words
from modules.evaluation.task_evaluation import Evaluation, Task, TaskRows
from modules.system.redaction import redact_text
from modules.tokenizer.lost_text import LostText
from modules.tracking.tracked_run import TrackedRun

from .printing import console, say, show

LOST = "lost by the tokenizer, and charged for"
REPORT = "report.html"
"""Artifact of an evaluation's run."""


def evaluation_plan(task: Task, lost: Mapping[str, LostText]) -> dict[str, str]:
    """lost: characters of the test rows that each model's tokenizer loses."""
    config = task.config
    texts = f"{len(task.chosen):,} rows" if task.chosen else "none"
    return {
        "model": config.model,
        "rows": f"{counted(task.test)} of {task.place}{copies_in_words(task.copies)}{related_in_words(task)}",
        "training rows": training_rows(task) or "none",
        "metrics": ", ".join(task.metrics),
        "texts generated": texts,
        "beside it": ", ".join(([config.baseline] if config.baseline else []) + task.trivial) or "nothing",
        **{f"{who}: {LOST}": str(found) for who, found in lost.items() if found.counts},
        **{f"left out: {what}": why for what, why in task.left_out.items()},
    }


def counted(rows: datasets.Dataset) -> str:
    return f"{len(rows):,} {kind_of_rows(rows.column_names)}"


def training_rows(task: Task) -> str:
    return f"{len(task.train):,} rows of {task.train_place}" if task.train is not None else ""


def copies_in_words(copies: int | None) -> str:
    """Test rows that are training rows too; nothing where there are none, or where it isn't known."""
    return f"; also among the training rows: {copies:,}" if copies else ""


def related_in_words(task: Task) -> str:
    """Test rows of a group that training rows are of, too: about the same passage, say."""
    if task.train is None or task.place is None or task.train_place is None:
        return ""
    named = all(groups_are_named(place.source) for place in (task.place, task.train_place))
    related = count_of_other_groups(task.test, task.train) if named else 0
    return f"; of a group that training rows are of: {related:,}" if related else ""


def describe_test_rows(rows: TaskRows, copies: int | None, lost: LostText | None = None) -> dict[str, str]:
    """Which rows, how many of them the model was trained on, what its tokenizer loses, and columns that can't serve."""
    shown = {"test rows": f"{counted(rows.test)} of {rows.place}{copies_in_words(copies)}"}
    shown |= {LOST: str(lost)} if lost and lost.counts else {}
    return shown | {f"column {name} is ignored": why for name, why in rows.ignored.items()}


def show_results(task: Task, evaluations: Mapping[str, Evaluation]) -> None:
    """Metric by metric, whoever is best first, with 95 % intervals; then what was cut or left out."""
    of = rows_in_words(evaluations["model"].metrics[0]) + (
        f", texts for {len(task.chosen):,} of them" if task.chosen else ""
    )
    console.print(
        f"\n[bold]{task.task.name or 'evaluation'}[/bold]: {of}; [95 % interval]", soft_wrap=True, markup=True
    )
    say(redact_text(f"  rows of {task.place}{copies_in_words(task.copies)}{related_in_words(task)}"))
    if task.train_place:
        say(redact_text(f"  n-grams, nearest rows and examples of {training_rows(task)}"))
    table = Table(show_header=False, box=None)
    for name in metric_names(evaluations):
        lines = sorted(lines_of(name, evaluations), key=lambda line: line[2])
        for index, (who, shown, _) in enumerate(lines):
            table.add_row(f"  {name.replace('_', ' ')}" if index == 0 else "", who, shown)
    console.print(table)
    counts = {
        f"{who}: {name.replace('_', ' ')}": count
        for who, e in evaluations.items()
        for name, count in e.counts.items()
        if count
    }
    if counts:
        show("too long for the model's positions", counts)
    lost = {who: str(found.lost) for who, found in evaluations.items() if found.lost and found.lost.counts}
    if lost:
        show(LOST, lost)
    if task.left_out:
        show("left out", task.left_out)


def metric_names(evaluations: Mapping[str, Evaluation]) -> list[str]:
    names = dict.fromkeys(metric.name for found in evaluations.values() for metric in found.metrics)
    return [name for name in names if name != PER_TOKEN]


def lines_of(name: str, evaluations: Mapping[str, Evaluation]) -> Iterator[tuple[str, str, float]]:
    """(who, value and interval, what to sort by: the smaller the better)"""
    for who, found in evaluations.items():
        for metric, interval in zip(found.metrics, found.intervals, strict=True):
            if metric.name == name:
                yield who, in_words(metric, interval), metric.cost(metric.value)


def in_words(metric: Metric, interval: tuple[float, float]) -> str:
    low, high = interval
    value = "–" if math.isnan(metric.value) else f"{metric.value:.4g}"
    return value + ("" if math.isnan(low) else f"  [{low:.4g}, {high:.4g}]")


def place_of(run: TrackedRun, artifact: str) -> str:
    """A path where the run's artifacts are files of this machine."""
    folder = run.info.artifact_uri
    path = local_file_uri_to_path(folder) if is_local_uri(folder) else None
    return f"{path}/{artifact}" if path else f"{artifact}, an artifact of run {run.info.run_id}"
