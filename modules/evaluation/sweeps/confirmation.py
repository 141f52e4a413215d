"""Whether the best trial is better than the next, over seeds: by the sweep's metric, on the same validation rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...checkpoint.loading import load_verified
from ...config.sweeps.command import SweepConfig
from ...config.training import VALIDATED, TrainingConfig
from ...data.groups import GROUP, has_group
from ...data.splits import choose_places, load_splits, texts_alone
from ...system.atomic import new_file
from ..choosing.checkpoint_choice import extras, logged_name, selection_task
from ..likelihood import Likelihoods, score
from ..metrics import bleu_of, chrf_of
from ..statistics import Metric, PairedComparison, compare, exp_ratio, ratio, with_clusters
from ..task_rows import groups_of
from .folder import scores_of_rows
from .study import Study
from .trial_outcome import Outcome

KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    kind.__name__: kind for kind in (ratio, exp_ratio, bleu_of, chrf_of)
}
"""How a metric's value follows from its rows' statistics: what a file names, and a metric of it needs."""


def save_scores(path: Path, folder: Path, config: TrainingConfig, metric: str) -> None:
    """What each validation row adds to a model's metric, in a file; none where the metric isn't made up of rows (of a
    mixture it is weighted)."""
    if config.data.mix:
        return
    name = metric.removeprefix("val/")
    splits, place = load_splits(config.data, config.seed, extras={GROUP, *extras(config)}), choose_places(config.data)
    rows, found = splits["validation"], None
    decoder, tokenizer = load_verified(folder)
    if name in LIKELIHOODS:
        found = LIKELIHOODS[name](score(decoder, tokenizer, rows))
    elif name not in VALIDATED:
        task = selection_task(config, rows, texts_alone(splits["train"]), place["validation"])
        rows = task.test.select(task.chosen)
        found = next(each for each in task.of_model(decoder, tokenizer).metrics if logged_name(each) == name)
    if found is None:
        return
    own = [hashlib.sha256("\0".join(map(str, row.values())).encode()).hexdigest() for row in rows]
    groups = groups_of(rows) or own
    labels = [group if has_group(group) else own[row] for row, group in enumerate(groups)]
    unread = found.unread if found.unread is not None else np.zeros(len(own), bool)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        kind = found.value_of.__name__
        np.savez(file, statistics=found.statistics, labels=np.array(labels), unread=unread, kind=np.array(kind))


LIKELIHOODS: dict[str, Callable[[Likelihoods], Metric]] = {
    "loss": lambda found: Metric("loss", found.perplexity.statistics, ratio, higher_is_better=False),
    "perplexity": lambda found: found.perplexity,
    "perplexity_per_char": lambda found: found.perplexity_per_char,
}


def read_scores(paths: Sequence[Path], metric: str, higher_is_better: bool) -> tuple[Metric, list[str]]:
    """The metric over all seeds, and each row's label. A row that several seeds validate on is one unit of the test."""
    parts = [np.load(path) for path in paths]
    statistics, unread = (np.concatenate([part[name] for part in parts]) for name in ("statistics", "unread"))
    labels = [str(label) for part in parts for label in part["labels"]]
    found = Metric(metric, statistics, KINDS[str(parts[0]["kind"])], higher_is_better)
    return replace(with_clusters(found, labels), unread=unread if unread.any() else None), labels


@dataclass(frozen=True)
class Confirmation:
    """The best trial and the next, with further seeds."""

    best: Outcome
    other: Outcome
    values: list[tuple[int, float, float]]
    """(seed, the metric of the best, of the other)"""
    metric: str
    test: PairedComparison | None
    """By the metric, on the same validation rows, over all seeds; None where there is none."""
    untested: str
    """Why there is none."""
    errors: list[str]

    @property
    def verdict(self) -> str | None:
        """In words; None where no seed came to an end with both."""
        if not (test := self.test):
            return f"undecided: {self.untested}" if self.untested else None
        answer = {"better": "yes", "worse": "no, the next one is better"}.get(test.verdict, "undecided")
        return (
            f"{answer}: {self.metric} of the same validation rows {test.new:.5g} and {test.old:.5g}, "
            f"difference {test.difference:+.3g} [{test.low:+.3g}, {test.high:+.3g}], p = {test.p_value:.3f}"
        )


def further_seeds(config: SweepConfig) -> list[int]:
    """None of them the search's own, by which the best was chosen: there it may have been lucky."""
    return [config.seed + 1 + index for index in range(config.confirm_seeds)]


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
    files = [[scores_of_rows(folder, mark_of(one, seed)) for seed in done] for one in pair]
    test, untested = tested(files, study.config) if done else (None, "")
    return Confirmation(pair[0], pair[1], values, study.config.metric, test, untested, errors)


def tested(files: Sequence[Sequence[Path]], config: SweepConfig) -> tuple[PairedComparison | None, str]:
    """The paired test of two models by their files of scores; (None, why) where there is none."""
    if not all(path.is_file() for paths in files for path in paths):
        return None, f"{config.metric} isn't made up of scores of rows that could be compared"
    (best, labels), (other, others) = (read_scores(paths, config.metric, config.goal == "maximize") for paths in files)
    if labels != others:
        return None, "their validation rows aren't the same"
    return compare(best, other), ""
