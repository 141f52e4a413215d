"""What an evaluation leaves in its MLflow run: metrics, tables of rows, and who made it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ..checkpoint.model_folder import describe_provenance
from ..config.evaluation import NGRAMS
from ..tokenizer.lost_text import LostText
from ..tracking.provenance import git_state
from ..tracking.tracked_run import TrackedRun
from .report.figures import interval_bars
from .task_evaluation import Evaluation


def log_results(
    run: TrackedRun,
    evaluations: Mapping[str, Evaluation],
    samples: list[dict[str, Any]],
    copies: int | None = None,
    models: Mapping[str, str | None] | None = None,
) -> None:
    """Metrics test/NAME of the model and test/WHO_NAME of the others, each with _low and _high; tables of rows.

    copies: how many of the test rows are training rows too, where it is known. models: who → id of the LoggedModel.
    """
    model = evaluations["model"]
    metrics: dict[str, float] = {"test/rows": len(model.metrics[0].statistics)}
    metrics |= {f"test/{name}": count for name, count in model.counts.items()}
    metrics |= doubts(model.lost, copies)
    log_scores(run, metrics, (models or {}).get("model"))
    for who, found in evaluations.items():
        metrics = {}
        for metric, (low, high) in zip(found.metrics, found.intervals, strict=True):
            name = metric_key(who, metric.name)
            metrics |= {name: metric.value, f"{name}_low": low, f"{name}_high": high}
        log_scores(run, metrics, (models or {}).get(who))
    perplexities = {
        who: (metric.value, *ends)
        for who, found in evaluations.items()
        for metric, ends in zip(found.metrics, found.intervals, strict=True)
        if metric.name == "perplexity_per_char"
    }
    if perplexities:
        title = "perplexity per character of the test rows (lower is better)"
        run.log_figure(interval_bars(perplexities, title, log=True), "perplexity_per_char.png")
    if samples:
        run.log_table({key: [sample[key] for sample in samples] for key in samples[0]}, "samples.json")
    for who, found in evaluations.items():
        if found.rows:
            run.log_table(row_table(found), f"rows_{who}.json")


def scores_of(found: Evaluation) -> dict[str, float]:
    """The model's own scores, as log_results names them."""
    scores = {metric_key("model", metric.name): metric.value for metric in found.metrics}
    return {name: value for name, value in scores.items() if not math.isnan(value)}


def intervals_of(found: Evaluation) -> dict[str, float]:
    """The ends of their 95 % intervals."""
    ends = {
        metric_key("model", metric.name) + end: value
        for metric, interval in zip(found.metrics, found.intervals, strict=True)
        for end, value in zip(("_low", "_high"), interval, strict=True)
    }
    return {name: value for name, value in ends.items() if not math.isnan(value)}


def log_scores(run: TrackedRun, metrics: Mapping[str, float], model_id: str | None) -> None:
    known = {name: value for name, value in metrics.items() if not math.isnan(value)}
    run.log_metrics(known, model_id=model_id, dataset="test")


def doubts(lost: LostText | None, copies: int | None) -> dict[str, float]:
    """What makes the model's score doubtful: the share of lost characters, and test rows that are training rows too."""
    found: dict[str, float] = {} if copies is None else {"test/rows_in_training": copies}
    return found if lost is None else found | {"test/lost_characters": lost.share}


def metric_key(who: str, metric: str) -> str:
    if who in NGRAMS:
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
