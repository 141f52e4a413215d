"""The results of an evaluation: to the terminal and to the MLflow run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri
from rich.table import Table

from modules.checkpoint.model_folder import describe_provenance
from modules.evaluation.baselines import NAMES
from modules.evaluation.report.figures import perplexity_bars
from modules.evaluation.statistics import Metric, rows_in_words
from modules.evaluation.task_evaluation import Evaluation, Task
from modules.tracking.provenance import git_state
from modules.tracking.tracked_run import TrackedRun

from .command_line import console, show

REPORT = "report.html"

PER_TOKEN = "perplexity"
"""Of different tokenizers not comparable, so it is logged but not shown."""


def show_results(task: Task, evaluations: Mapping[str, Evaluation]) -> None:
    """Metric by metric, whoever is best first, with 95 % intervals; then what was cut or left out."""
    of = rows_in_words(evaluations["model"].metrics[0]) + (
        f", texts for {len(task.chosen):,} of them" if task.chosen else ""
    )
    console.print(
        f"\n[bold]{task.task.name or 'evaluation'}[/bold]: {of}; [95 % interval]", soft_wrap=True, markup=True
    )
    table = Table(show_header=False, box=None)
    for name in metric_names(evaluations):
        lines = sorted(lines_of(name, evaluations), key=lambda line: math.inf if math.isnan(line[2]) else line[2])
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
                yield who, in_words(metric, interval), -metric.value if metric.higher_is_better else metric.value


def in_words(metric: Metric, interval: tuple[float, float]) -> str:
    low, high = interval
    value = "–" if math.isnan(metric.value) else f"{metric.value:.4g}"
    return value + ("" if math.isnan(low) else f"  [{low:.4g}, {high:.4g}]")


def log_results(run: TrackedRun, evaluations: Mapping[str, Evaluation], samples: list[dict[str, Any]]) -> None:
    """Metrics test/NAME of the model and test/WHO_NAME of the others, each with _low and _high; tables of rows."""
    model = evaluations["model"]
    metrics: dict[str, float] = {"test/rows": len(model.metrics[0].statistics)}
    metrics |= {f"test/{name}": count for name, count in model.counts.items()}
    for who, found in evaluations.items():
        for metric, (low, high) in zip(found.metrics, found.intervals, strict=True):
            name = metric_key(who, metric.name)
            metrics |= {name: metric.value, f"{name}_low": low, f"{name}_high": high}
    run.log_metrics({name: value for name, value in metrics.items() if not math.isnan(value)})
    perplexities = {who: e["perplexity_per_char"].value for who, e in evaluations.items() if "perplexity_per_char" in e}
    if perplexities:
        run.log_figure(perplexity_bars(perplexities, "test rows"), "perplexity_per_char.png")
    if samples:
        run.log_table({key: [sample[key] for sample in samples] for key in samples[0]}, "samples.json")
    for who, found in evaluations.items():
        if found.rows:
            run.log_table(row_table(found), f"rows_{who}.json")


def metric_key(who: str, metric: str) -> str:
    if who in NAMES:
        return f"test/floor_{who}"
    name = metric.replace(" ", "_")
    return f"test/{name}" if who == "model" else f"test/{who}_{name}"


def row_table(found: Evaluation) -> dict[str, list[object]]:
    """Each row that a text was generated for: what was asked, expected and written, and its own scores."""
    table: dict[str, list[object]] = {
        "row": [row.number for row in found.rows],
        "source": [row.source for row in found.rows],
        "references": ["\n".join(row.references) for row in found.rows],
        "text": [row.text for row in found.rows],
        "stopped": [row.stopped for row in found.rows],
    }
    for name in found.rows[0].scores:
        values = [row.scores[name] for row in found.rows]
        table[name] = [None if math.isnan(value) else round(value, 6) for value in values]
    return table


def made_by(run: TrackedRun) -> dict[str, str]:
    """For the end of a page: the run, the code, when."""
    found = describe_provenance({"run_id": run.info.run_id, **git_state()}, "evaluated")
    return {**found, "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}


def place_of(run: TrackedRun, artifact: str) -> str:
    """A path where the run's artifacts are files of this machine."""
    folder = run.info.artifact_uri
    path = local_file_uri_to_path(folder) if is_local_uri(folder) else None
    return f"{path}/{artifact}" if path else f"{artifact}, an artifact of run {run.info.run_id}"
