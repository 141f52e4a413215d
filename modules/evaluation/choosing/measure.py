"""What a model is chosen by: one score of its task, and others by which it mustn't be much worse."""

from __future__ import annotations

import difflib
from dataclasses import replace

from ...config.evaluation import LIKELIHOOD_METRICS, MAIN_MEASURE, TEXT_METRICS, TRIVIAL, RegisterConfig, TaskConfig
from ..likelihood import ACCURACIES
from ..metrics import METRICS, bleu, verse
from ..statistics import Metric
from ..task_evaluation import Task
from ..task_rows import TaskRow

DEFAULT = "perplexity_per_char"

NO_MEASURE = {
    "length_ratio": "a text of the right length may say anything",
    "perplexity": "it is per token, and not comparable between tokenizers: perplexity_per_char is",
}
"""Score that no model can be chosen by → why."""


def measure_of(task: TaskConfig) -> str:
    """The first score of the task's that compares with the rows' answers; where it has none, perplexity."""
    return next((MAIN_MEASURE[metric] for metric in task.metrics if metric in MAIN_MEASURE), DEFAULT)


def scores_of(metric: str) -> list[str]:
    """The names of what a metric computes, found by a trial."""
    texts, rows = ["甲乙"], [TaskRow("甲", ["甲乙"], ["乙"])]
    found: list[Metric] = []
    if metric == "perplexity":
        return [DEFAULT]
    if metric == "choices":
        return list(ACCURACIES)
    if metric == "bleu":
        found = bleu(texts, rows)
    elif metric == "verse":
        found = verse(texts, rows, None)
    else:
        found = METRICS[metric](texts, rows)
    return [each.name for each in found if each.name not in NO_MEASURE]


def settle_measure(config: RegisterConfig) -> RegisterConfig:
    """With the measure that decides, and a task of what must be computed for it and for the guards.

    ValueError for a measure or a guard that nothing computes.
    """
    metric_of = {score: metric for metric in (*LIKELIHOOD_METRICS, *TEXT_METRICS) for score in scores_of(metric)}
    names = {score.replace(" ", "_"): score for score in metric_of}  # as MLflow has them
    given = config.measure or measure_of(config.task)
    for key, score in [("measure=", given), *(("guard.", name) for name in config.guard)]:
        if score.replace(" ", "_") not in names:
            raise ValueError(f"{key}{score}: {why_unknown(score, list(names))}")
    measure = names[given.replace(" ", "_")]
    guard = {names[score.replace(" ", "_")]: share for score, share in config.guard.items()}
    needed = {metric_of[score] for score in (DEFAULT, measure, *guard)}
    metrics = [metric for metric in (*LIKELIHOOD_METRICS, *TEXT_METRICS) if metric in needed]
    written = metric_of[measure] in TEXT_METRICS
    trivial = [name for name in config.task.trivial or TRIVIAL if name != "reference"] if written else []
    task = replace(config.task, metrics=metrics, trivial=trivial)
    return replace(
        config, measure=measure, guard=guard, task=task, ngram_floor=config.ngram_floor and measure == DEFAULT
    )


def why_unknown(score: str, known: list[str]) -> str:
    if score in NO_MEASURE:
        return f"no measure to choose by: {NO_MEASURE[score]}"
    if score in MAIN_MEASURE:  # a metric's name
        return f"did you mean {MAIN_MEASURE[score]}?"
    near = difflib.get_close_matches(score, known, 1, 0.6)
    return f"no such score; did you mean {near[0]}?" if near else f"no such score; there are {', '.join(known)}"


def require_scores(config: RegisterConfig, task: Task) -> None:
    """ValueError where these rows don't have what the measure or a guard needs."""
    keys = {f"measure={config.measure}": config.measure} | {f"guard.{name}": name for name in config.guard}
    for key, score in keys.items():
        for metric, why in task.left_out.items():
            if metric in TEXT_METRICS + LIKELIHOOD_METRICS and score in scores_of(metric):
                raise ValueError(
                    f"{key}: {why} (rows of {task.place}); name another measure, e.g. measure={DEFAULT}, or other rows "
                    "(data.path, data.test_path)"
                )
