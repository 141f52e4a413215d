"""A model that is to be registered: scored beside the holder of the alias and beside what needs no model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from ...checkpoint.loading import load_verified, open_model, open_tokenizer
from ...config.evaluation import EvaluateConfig, RegisterConfig, ScoringConfig
from ...tokenizer.lost_text import LostText
from ...tracking.registry import resolve_model, version_with_alias
from ..baselines import NEEDS_TRAINING_ROWS
from ..likelihood import lost_of_rows
from ..logged_results import metric_key
from ..promotion import Guard, Promotion, decide, in_figures
from ..statistics import Metric, compare
from ..task_evaluation import Evaluation, Progress, Task, TaskRows
from .measure import DEFAULT, require_scores


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
        self.config, self.folder, self.holder = config, folder, holder
        self.measure = config.measure or DEFAULT
        shared = {key.name: getattr(config, key.name) for key in fields(ScoringConfig)}
        self.task = Task(EvaluateConfig(model=config.model, **shared), *rows)
        require_scores(config, self.task)
        if rows.train is None or "tgt_txt" not in rows.train.column_names:
            self.task.trivial = [name for name in self.task.trivial if name not in NEEDS_TRAINING_ROWS]
        for each in (folder, *([holder.folder] if holder else [])):
            self.task.prompted(open_tokenizer(each), open_model(each).config.max_position_embeddings)
        self.task.note_copies(folder)

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
        prompted = self.task.prompted(open_tokenizer(self.folder), positions)
        return lost_of_rows(prompted.rows, prompted.tokenizer, positions)

    def score(self, folder: Path, progress: Progress | None = None) -> Evaluation:
        """Of the model itself, or of the holder's."""
        return self.task.of_model(*load_verified(folder), progress)

    def scores(self, found: Evaluation, who: str = "model") -> dict[str, float]:
        """Those that decide, by their keys in MLflow."""
        return {metric_key(who, name): found[name].value for name in (DEFAULT, self.measure, *self.config.guard)}

    def outcome(self, new: Evaluation, held: Evaluation | None, before: str | None = None) -> Outcome:
        """Of the scores of both on these rows. before: number of the version that has the new model already."""
        measure = new[self.measure]
        if self.holder and self.holder.number == before:
            stays = f"stays with version {before}, which has these weights"
            promotion = Promotion(True, "held", stays, measure.name)
        elif self.holder and held:
            guards = [Guard(share, new[name], held[name]) for name, share in self.config.guard.items()]
            promotion = decide(measure, held[self.measure], self.holder.number, self.config.level, guards)
        else:
            promotion = decide(measure, None, None, self.config.level)
        found: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
        for name, rival in () if math.isnan(measure.value) else self.rivals():
            verdict = compare(measure, rival, self.config.level, resamples=2000).verdict
            found[verdict].append(f"{name} ({in_figures(rival.value)})")
        return Outcome(promotion, self.scores(new), found["worse"], found["undecided"])

    def rivals(self) -> Iterator[tuple[str, Metric]]:
        """What needs no model, with its score by the measure."""
        for name, rival in self.task.rivals(open_tokenizer(self.folder)).items():
            if self.measure in rival and not math.isnan(rival[self.measure].value):
                yield name, rival[self.measure]


def spoken(name: str) -> str:
    return name.replace("_", " ")
