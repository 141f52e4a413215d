"""A model that is to be registered: scored beside the holder of the alias and beside what needs no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ...checkpoint.loading import load_verified, open_model
from ...config.evaluation import EvaluateConfig, RegisterConfig, ScoringConfig
from ...tokenizer.lost_text import LostText
from ...tracking.models.known_models import log_used_model
from ...tracking.registry import resolve_model, version_with_alias
from ...tracking.tracked_run import TrackedRun
from ..baselines import NEEDS_TRAINING_ROWS
from ..likelihood import lost_of_rows
from ..logged_results import log_scores, metric_key
from ..promotion import Guard, Promotion, decide, in_figures
from ..statistics import Metric, compare
from ..task_evaluation import Evaluation, Progress, Task, TaskRows
from ..task_rows import copies_in_training
from .measure import DEFAULT, require_scores
from .scored_rows import scored_tokenizer

OnProgressOf = Callable[[str], AbstractContextManager[Progress]]
"""What is at work → what is to be told how far it is."""


@dataclass(frozen=True)
class Holder:
    """The version that carries the alias."""

    number: str
    uri: str
    folder: Path
    measure: str
    """By which it was given the alias."""


def holder_of(config: RegisterConfig) -> Holder | None:
    """Whoever carries the alias now."""
    held = version_with_alias(config.model_name, config.alias)
    if not held:
        return None
    uri = f"models:/{config.model_name}@{config.alias}"
    return Holder(str(held.version), uri, resolve_model(uri), held.tags.get("measure", DEFAULT))


@dataclass(frozen=True)
class Outcome:
    promotion: Promotion
    """Whether the alias moves to it."""
    scores: dict[str, float]
    """By their keys in MLflow."""
    loses_to: list[str]
    """What needs no model and is better by the measure, by a paired test; each with its score."""
    undecided: list[str]
    """What isn't shown to be better or worse."""

    def tags(self) -> dict[str, str]:
        """Of the new version, and of the run that made it."""
        found = {key.replace("/", "_"): f"{value:.4f}" for key, value in self.scores.items()}
        found |= self.promotion.tags()
        return found | ({"loses_to": ", ".join(self.loses_to)} if self.loses_to else {})

    def describe(self, alias: str) -> dict[str, str]:
        """For people."""
        told = {"loses to": self.loses_to, "isn't shown to be better than": self.undecided}
        loss = "; it ".join(f"{words} {', '.join(names)}" for words, names in told.items() if names)
        mind = {"MIND": f"by {spoken(self.promotion.measure)} the model {loss}"} if loss else {}
        return {alias: self.promotion.reason} | mind


class Candidate:
    def __init__(self, config: RegisterConfig, folder: Path, rows: TaskRows, holder: Holder | None) -> None:
        """config: of settle_measure. ValueError where the rows lack what a measure needs, or a model can't be asked."""
        self.config, self.folder = config, folder
        self.measure = config.measure or DEFAULT
        shared = {key.name: getattr(config, key.name) for key in fields(ScoringConfig)}
        self.task = Task(EvaluateConfig(model=config.model, **shared), *rows)
        require_scores(config, self.task)
        if rows.train is None or "tgt_txt" not in rows.train.column_names:
            self.task.trivial = [name for name in self.task.trivial if name not in NEEDS_TRAINING_ROWS]
        self.own_training = self.task.note_copies(folder)
        """Whether it was trained on each of the rows; None where that isn't known."""
        self.require_askable(folder)
        self.face(holder)

    def face(self, holder: Holder | None) -> None:
        """Whom it is compared with from now on."""
        self.holder = holder
        theirs = None
        if holder:
            self.require_askable(holder.folder)
            theirs = copies_in_training(self.task.test, holder.folder, self.config.data.cache_dir)
        masks = [mask for mask in (self.own_training, theirs) if mask is not None]
        self.seen = np.logical_or.reduce(masks) if masks else np.zeros(len(self.task.test), bool)
        """Whether one of the two was trained on each of the rows, as far as that is known."""

    def require_askable(self, folder: Path) -> None:
        self.task.prompted(
            scored_tokenizer(folder, self.config.data), open_model(folder).config.max_position_embeddings
        )

    def plan(self) -> dict[str, str]:
        """How it will be chosen, for people."""
        guards = ", ".join(f"{spoken(name)} not worse by more than {x:.1%}" for name, x in self.config.guard.items())
        rivals = [*self.task.trivial, *(["n-grams"] if self.config.ngram_floor and self.task.train is not None else [])]
        shown = {"measure": spoken(self.measure) + (f"; {guards}" if guards else ""), "against": self.opponent()}
        return shown | ({"and against": ", ".join(rivals)} if rivals else {})

    def opponent(self) -> str:
        alias = self.config.alias
        if not self.holder:
            return f"nobody: no version is {alias} yet"
        before = self.holder.measure
        other = f", which became it by {spoken(before)}; both are scored anew" if before != self.measure else ""
        return f"version {self.holder.number}, the {alias}{other}"

    def lost(self) -> LostText:
        """What its tokenizer loses of the rows."""
        positions = open_model(self.folder).config.max_position_embeddings
        prompted = self.task.prompted(scored_tokenizer(self.folder, self.config.data), positions)
        return lost_of_rows(prompted.rows, prompted.tokenizer, positions)

    def score(self, folder: Path, progress: Progress | None = None) -> Evaluation:
        """Of the model itself, or of the holder's."""
        decoder, _ = load_verified(folder)
        return self.task.of_model(decoder, scored_tokenizer(folder, self.config.data), progress)

    def scores(self, found: Evaluation, who: str = "model") -> dict[str, float]:
        """Those that decide, by their keys in MLflow."""
        return {metric_key(who, name): found[name].value for name in (DEFAULT, self.measure, *self.config.guard)}

    def judge(self, run: TrackedRun, new: Evaluation, before: str | None, progress_of: OnProgressOf) -> Outcome:
        """By its scores beside those that the holder gets now. before: number of the version that has the new model."""
        holder, held = self.holder, None
        if holder and holder.number != before:
            with progress_of(f"version {holder.number}") as progress:
                held = self.score(holder.folder, progress)
            log_scores(run, self.scores(held, self.config.alias), log_used_model(run, holder.uri, holder.folder))
        return self.outcome(new, held, before)

    def outcome(self, new: Evaluation, held: Evaluation | None, before: str | None = None) -> Outcome:
        """Of the scores of both on these rows. before: number of the version that has the new model already."""
        measure = new[self.measure]
        if self.holder and self.holder.number == before:
            stays = f"stays with version {before}, which has these weights"
            promotion = Promotion(True, "held", stays, measure.name)
        elif self.holder and held:
            promotion = self.compared(new, held, self.holder.number)
        else:
            promotion = decide(measure, None, None, self.config.level)
        found: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
        for name, rival in () if math.isnan(measure.value) else self.rivals():
            verdict = compare(measure, rival, self.config.level, resamples=2000).verdict
            found[verdict].append(f"{name} ({in_figures(rival.value)})")
        return Outcome(promotion, self.scores(new), found["worse"], found["undecided"])

    def compared(self, new: Evaluation, held: Evaluation, holder: str) -> Promotion:
        """By the rows that neither was trained on: whoever knows a row beforehand is at an advantage."""
        count = int(self.seen.sum())
        if count == len(self.seen):
            reason = f"stays with version {holder}: undecided, as each test row is a training row of one of the two"
            return Promotion(False, "undecided", reason, self.measure)
        guards = [Guard(x, self.unseen(new[name]), self.unseen(held[name])) for name, x in self.config.guard.items()]
        measures = self.unseen(new[self.measure]), self.unseen(held[self.measure])
        found = decide(*measures, holder, self.config.level, guards)
        left_out = f"; {count:,} more don't count: they are training rows of one of the two" if count else ""
        return replace(found, reason=found.reason + left_out)

    def unseen(self, metric: Metric) -> Metric:
        """The metric of the rows that neither was trained on."""
        if not self.seen.any():
            return metric
        kept = ~(self.seen if len(metric.statistics) == len(self.seen) else self.seen[self.task.chosen])
        return replace(metric.at(kept), unread=None if metric.unread is None else metric.unread[kept])

    def rivals(self) -> Iterator[tuple[str, Metric]]:
        """What needs no model, with its score by the measure."""
        for name, rival in self.task.rivals(scored_tokenizer(self.folder, self.config.data)).items():
            if self.measure in rival and not math.isnan(rival[self.measure].value):
                yield name, rival[self.measure]


def spoken(name: str) -> str:
    return name.replace("_", " ")
