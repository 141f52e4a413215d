"""Whether the best trial is better than the next, over seeds: both on the same validation rows, by a paired test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...checkpoint.loading import load_verified
from ...config.data import DataConfig
from ...config.sweeps.command import SweepConfig
from ...data.splits import load_splits
from ...system.atomic import new_file
from ..likelihood import score
from ..statistics import Metric, PairedComparison, cluster_labels, compare, perplexity, with_clusters
from .folder import scores_of_rows
from .study import Study
from .trial_outcome import Outcome

METRIC = "perplexity_per_char"


def save_scores(path: Path, model: Path, data: DataConfig, seed: int) -> None:
    """How likely a model finds each validation row, in a file."""
    rows = load_splits(data, seed, extras=("group",))["validation"]
    decoder, tokenizer = load_verified(model)
    found = score(decoder, tokenizer, rows)
    metric = found.perplexity_per_char
    texts = ["\0".join(map(str, row.values())) for row in rows]
    own = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    groups = cluster_labels(found.groups) if found.groups else own
    labels = [own[i] if label.startswith("row ") else label for i, label in enumerate(groups)]
    unread = metric.unread if metric.unread is not None else np.zeros(len(own), bool)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        np.savez(file, statistics=metric.statistics, labels=np.array(labels), unread=unread)


def read_scores(paths: Sequence[Path]) -> Metric:
    """The metric over all seeds. A row that several seeds validate on is one unit of the test, and not several."""
    parts = [np.load(path) for path in paths]
    statistics, unread = (np.concatenate([part[name] for part in parts]) for name in ("statistics", "unread"))
    metric = perplexity(METRIC, statistics[:, 0], statistics[:, 1])
    metric = with_clusters(metric, [str(label) for part in parts for label in part["labels"]])
    return Metric(
        metric.name, metric.statistics, metric.value_of, False, metric.clusters, unread if unread.any() else None
    )


@dataclass(frozen=True)
class Confirmation:
    """The best trial and the next, with further seeds."""

    best: Outcome
    other: Outcome
    values: list[tuple[int, float, float]]
    """(seed, the metric of the best, of the other)"""
    test: PairedComparison | None
    """On the same validation rows, over all seeds; None where no seed came to an end with both."""
    errors: list[str]


def further_seeds(config: SweepConfig) -> list[int]:
    """None of them the search's own, by which the best was chosen: there it may have been lucky."""
    return [config.seed + 1 + index for index in range(config.seeds)]


def mark_of(trial: Outcome, seed: int) -> str:
    return f"{trial.number:03d}-seed{seed}"


def confirmation_of(study: Study, folder: Path) -> Confirmation | None:
    """By the seeds with which both came to an end; None where they weren't trained again."""
    pair, notes = study.ranked()[:2], study.notes
    seeds = [seed for seed in further_seeds(study.config) if all(mark_of(one, seed) in notes for one in pair)]
    if len(pair) < 2 or not seeds:
        return None
    found = {seed: [notes[mark_of(trial, seed)] for trial in pair] for seed in seeds}
    errors = [str(note["error"]) for both in found.values() for note in both if "error" in note]
    done = [seed for seed, both in found.items() if not any("error" in note for note in both)]
    values = [(seed, float(found[seed][0]["value"]), float(found[seed][1]["value"])) for seed in done]
    if not done:
        return Confirmation(pair[0], pair[1], values, None, errors)
    best, other = (read_scores([scores_of_rows(folder, mark_of(one, seed)) for seed in done]) for one in pair)
    return Confirmation(pair[0], pair[1], values, compare(best, other), errors)
