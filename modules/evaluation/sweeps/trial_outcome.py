"""A trial of a sweep as it stands, read from Optuna's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...config.sweeps.space import Values
from ...tracking.summary.run_names import SHORT

if TYPE_CHECKING:
    import optuna

VALUES, RUN_ID, REASON, FACTS, STOPPED_AT, COPY = "values", "run_id", "reason", "facts", "stopped_at", "same_as"
"""What a trial keeps beside Optuna's own: its values as typed, its MLflow run, why it failed, and so on."""


TRAINED_IN = "trained_in"
"""Fact of a trial: the run that made its model, which is nested in the trial's own where the stage is main."""


@dataclass(frozen=True)
class Outcome:
    """A trial as it stands."""

    number: int
    values: Values
    state: str
    """running, finished, stopped (early) or failed."""
    value: float | None = None
    """Of the sweep's metric; of a trial that was stopped early its last."""
    run_id: str | None = None
    reason: str | None = None
    """Why it failed."""
    stopped_at: int | None = None
    """The optimizer step after which it was stopped early."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """seconds, tokens, metrics and what it was trained on."""

    @property
    def name(self) -> str:
        return trial_name(self.values)


def trial_name(values: Mapping[str, str]) -> str:
    """What differs from the other trials, in as few characters as other runs' names: lr=0.001 rank=8."""
    last = {key: SHORT.get(part := key.rpartition(".")[2], part) for key in values}
    several = {name for name in last.values() if list(last.values()).count(name) > 1}
    return " ".join(f"{key if last[key] in several else last[key]}={value}" for key, value in values.items())


def outcome_of(trial: optuna.trial.FrozenTrial) -> Outcome:
    attrs, states = trial.user_attrs, {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed"}
    value = trial.value if trial.state.name in ("COMPLETE", "PRUNED") else None
    if trial.state.name == "PRUNED" and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    return Outcome(
        trial.number,
        attrs.get(VALUES, {}),
        states.get(trial.state.name, "running"),
        value,
        attrs.get(RUN_ID),
        attrs.get(REASON),
        attrs.get(STOPPED_AT),
        attrs.get(FACTS, {}),
    )
