"""The trials of a sweep in Optuna's journal file: it survives every kill, and several processes may write to it.

Optuna is an extra, imported only here and only when a sweep begins.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats.qmc import Halton

from ...config.base import ConfigError
from ...config.sweeps.command import SweepConfig
from ...config.sweeps.space import Dimension, Values
from ...system.process_locks import file_lock
from .trial_outcome import COPY, FACTS, REASON, VALUES, Outcome, outcome_of

JOURNAL = "journal.log"

PRECISION = "precision"
"""Note of the study: arguments with the number format of all trials."""

STARTUP = 10
"""Trials that tpe spreads out over the space, at most; of a short sweep a third."""

ATTEMPTS = 2
"""How often a trial may be begun whose process died in it: the third time would die as well."""


def combinations_of(dimensions: Sequence[Dimension]) -> int | None:
    """How many there are; None where there is a range."""
    if not all(dimension.values for dimension in dimensions):
        return None
    return math.prod(len(dimension.values) for dimension in dimensions)


def method_of(config: SweepConfig, dimensions: Sequence[Dimension]) -> str:
    return config.method or ("grid" if combinations_of(dimensions) else "tpe")


def limit_of(config: SweepConfig, dimensions: Sequence[Dimension]) -> int | None:
    """The most trials; None where another budget ends the sweep."""
    return min(filter(None, (config.trials, combinations_of(dimensions))), default=None)


def import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError(["sweeps need Optuna, which isn't installed: pip install 'moyun[sweep]'"]) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class JournalLock:
    """The system frees it when a process dies; Optuna's own would be waited for half a minute."""

    def __init__(self, path: Path) -> None:
        self.lock = file_lock(path)

    def acquire(self) -> bool:
        self.lock.acquire()
        return True

    def release(self) -> None:
        self.lock.release()


class Study:
    """The trials of one sweep."""

    def __init__(self, folder: Path, config: SweepConfig, dimensions: Sequence[Dimension]) -> None:
        optuna = import_optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        journal = folder / JOURNAL
        lock: Any = JournalLock(folder / ".journal.lock")
        lock.acquire()
        try:
            cut_half_line(journal)
        finally:
            lock.release()
        self.config, self.dimensions = config, list(dimensions)
        self.method, self.limit = method_of(config, dimensions), limit_of(config, dimensions)
        self.optuna = optuna
        self.optuna_study: Any = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal), lock_obj=lock)),
            study_name="sweep",
            direction=config.goal,
            pruner=make_pruner(config.pruner),
            load_if_exists=True,
        )

    # --- what there is ---

    def outcomes(self) -> list[Outcome]:
        """All trials, without those that repeated another's values."""
        trials = self.optuna_study.get_trials(deepcopy=False)
        return [outcome_of(trial) for trial in trials if COPY not in trial.user_attrs and VALUES in trial.user_attrs]

    def note(self, name: str, value: Any) -> None:
        """Keeps a fact of the whole sweep."""
        self.optuna_study.set_user_attr(name, value)

    @property
    def notes(self) -> dict[str, Any]:
        return self.optuna_study.user_attrs

    def ranked(self) -> list[Outcome]:
        """Finished trials, the best first; of equals the earlier."""
        sign = -1 if self.config.goal == "maximize" else 1
        finished = [one for one in self.outcomes() if one.state == "finished" and one.value is not None]
        return sorted(finished, key=lambda one: (sign * float(one.value or 0.0), one.number))

    # --- what comes next ---

    def interrupted(self) -> list[Outcome]:
        """Trials that a kill left unfinished, to be gone on with first."""
        found = self.optuna_study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.RUNNING,))
        for trial in found:
            if VALUES not in trial.user_attrs:  # killed while its values were being chosen
                self.choose(trial.number, trial._trial_id)
            self.is_repeated(trial.number)
        return [one for one in self.outcomes() if one.state == "running"]

    def next_trial(self) -> Outcome | None:
        """A new trial; None where there are no other values."""
        for _ in range(100):
            trials = self.optuna_study.get_trials(deepcopy=False)
            waits = any(trial.state.name == "WAITING" for trial in trials)  # a kill came before it was asked for
            if not waits and not self.enqueue(len(trials)):
                return None
            self.optuna_study.sampler = self.sampler(len(trials))
            trial = self.optuna_study.ask()
            self.choose(trial.number, trial._trial_id)
            if not self.is_repeated(trial.number):
                return self.outcome(trial.number)
        return None

    def is_repeated(self, number: int) -> bool:
        """Whether a trial has another one's values; then it ends as that one did: the same training would come to
        the same."""
        own = self.outcome(number)
        others = [one for one in self.outcomes() if one.values == own.values and one.number != number]
        same = next((one for one in others if one.number < number or one.state != "running"), None)
        if same is None:
            return False
        self.keep(number, COPY, same.number)
        if same.state == "finished" and same.value is not None:
            self.optuna_study.tell(number, same.value)
        else:
            self.optuna_study.tell(number, state=self.optuna.trial.TrialState.FAIL)
        return True

    def choose(self, number: int, trial_id: int) -> Values:
        """A trial's values, as its sampler draws them, and kept as they are typed."""
        self.optuna_study.sampler = self.sampler(number)
        trial = self.optuna.trial.Trial(self.optuna_study, trial_id)
        values: Values = {}
        for dimension in self.dimensions:
            if dimension.values:
                values[dimension.key] = trial.suggest_categorical(dimension.key, dimension.values)
            elif dimension.whole:
                low, high = int(dimension.low), int(dimension.high)
                values[dimension.key] = str(trial.suggest_int(dimension.key, low, high, log=dimension.log))
            else:
                drawn = trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log)
                values[dimension.key] = dimension.typed(drawn)
        trial.set_user_attr(VALUES, values)
        return values

    def enqueue(self, number: int) -> bool:
        """The next trial's values, where they don't depend on what came of others; False where none are left."""
        if self.method == "grid" or (self.repeats(number - 1) and combinations_of(self.dimensions)):
            return self.enqueue_untried(shuffled=self.method != "grid")
        if self.method == "random" or number < self.startup:
            self.optuna_study.enqueue_trial(self.spread_out(number))
        return True

    def repeats(self, number: int) -> bool:
        return number >= 0 and COPY in self.optuna_study.get_trials(deepcopy=False)[number].user_attrs

    @property
    def startup(self) -> int:
        """Trials that tpe spreads out before it looks at what came of them."""
        return min(STARTUP, max(3, (self.config.trials or 3 * STARTUP) // 3))

    def spread_out(self, number: int) -> dict[str, Any]:
        """A trial's values by its number, from a scrambled Halton sequence: a few of its points leave no large gaps."""
        points = Halton(len(self.dimensions), rng=np.random.default_rng(self.config.seed)).random(number + 1)
        return {d.key: d.at(share) for d, share in zip(self.dimensions, points[-1], strict=True)}

    def sampler(self, number: int) -> Any:
        """Of each trial anew, by its number: a sweep that was killed draws what it would have drawn."""
        seed = int(np.random.SeedSequence((self.config.seed, number)).generate_state(1)[0])
        if self.method == "tpe":
            parallel = self.config.workers > 1
            return self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, constant_liar=parallel)
        return self.optuna.samplers.RandomSampler(seed=seed)

    def enqueue_untried(self, shuffled: bool) -> bool:
        """Makes the next combination that there was none of the next trial's; False where there is none left."""
        tried = {tuple(one.values.values()) for one in self.outcomes()}
        points: Iterator[tuple[str, ...]] = itertools.product(*(dimension.values for dimension in self.dimensions))
        if shuffled:
            listed = list(points)
            random.Random(self.config.seed).shuffle(listed)
            points = iter(listed)
        point = next((point for point in points if point not in tried), None)
        if point is None:
            return False
        chosen = dict(zip((dimension.key for dimension in self.dimensions), point, strict=True))
        self.optuna_study.enqueue_trial(chosen, skip_if_exists=True)
        return True

    # --- what came of it ---

    def outcome(self, number: int) -> Outcome:
        return outcome_of(self.optuna_study.get_trials(deepcopy=False)[number])

    def keep(self, number: int, name: str, value: Any) -> None:
        """Keeps a fact of a trial."""
        trial_id = self.optuna_study.get_trials(deepcopy=False)[number]._trial_id
        self.optuna_study._storage.set_trial_user_attr(trial_id, name, value)

    def tell(self, number: int, value: float | None, facts: Mapping[str, Any], reason: str | None = None) -> Outcome:
        """Ends a trial: with a value it is finished (or was stopped early, as its callback noted), else it failed."""
        states = self.optuna.trial.TrialState
        self.keep(number, FACTS, dict(facts))
        if value is None:
            self.keep(number, REASON, reason or "no reason is known")
            self.optuna_study.tell(number, state=states.FAIL)
        elif self.outcome(number).stopped_at is not None:
            self.optuna_study.tell(number, state=states.PRUNED)
        else:
            self.optuna_study.tell(number, value)
        return self.outcome(number)

    def importances(self) -> dict[str, float]:
        """Key → its share in what makes a trial one of the best (PED-ANOVA); empty where too few trials tell."""
        finished = [one for one in self.outcomes() if one.state == "finished"]
        varied = [d.key for d in self.dimensions if len({one.values[d.key] for one in finished}) > 1]
        if len(finished) < 4 or len({one.value for one in finished}) < 2 or len(varied) < 2:
            return {}
        evaluator = self.optuna.importance.PedAnovaImportanceEvaluator()
        found = self.optuna.importance.get_param_importances(self.optuna_study, evaluator=evaluator, params=varied)
        return {key: float(share) for key, share in found.items() if np.isfinite(share)}


def make_pruner(name: str) -> Any:
    """Steps are validations, from 1."""
    pruners = import_optuna().pruners
    if name == "median":
        return pruners.MedianPruner(n_startup_trials=3)
    return pruners.HyperbandPruner(min_resource=1) if name == "hyperband" else pruners.NopPruner()


def cut_half_line(journal: Path) -> None:
    """Cuts off what a killed process didn't write to the end: the next line would run on in it."""
    if not journal.is_file():
        return
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    while whole and not is_json(whole.splitlines()[-1]):
        whole = whole[: whole.rfind(b"\n", 0, len(whole) - 1) + 1]
    if len(whole) < len(content):
        with journal.open("r+b") as file:
            file.truncate(len(whole))


def is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
