"""What came of a sweep: for the terminal, for its MLflow run, and as a page."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from ...checkpoint.loading import verified_hash
from ...checkpoint.weights import CheckpointError
from ...config.sweeps.space import Dimension, arguments_of
from ...config.training import LOSS
from ...system.redaction import redact_text
from ...tracking.models.exported_model import log_model_once
from ...tracking.outbox.store import until_answered
from ...tracking.tracked_run import TrackedRun
from ..logged_results import made_by
from .confirmation import Confirmation, confirmation_of
from .folder import trial_folder
from .study import Study
from .sweep_charts import importance_chart, parallel_chart, progress_chart, response_chart
from .sweep_page import sweep_page
from .trial_outcome import TRAINED_IN, Outcome

logger = logging.getLogger("moyun.sweeps")

PAGE = "sweep.html"
"""Artifact of a sweep's run, and file of its folder."""

DONE, BEST = "done", "best"
"""Notes of the study: with what budget it came to its end, and which parameters its run has."""


@dataclass(frozen=True)
class SweepResult:
    run_id: str
    folder: Path
    metric: str
    goal: str
    dimensions: list[Dimension]
    outcomes: list[Outcome]
    ranked: list[Outcome]
    """Finished trials, the best first."""
    importances: dict[str, float]
    command: str
    """Trains the winner's model again, in a folder of its own."""
    confirmation: Confirmation | None = None
    model: Path | None = None
    """The best trial's model folder."""

    @property
    def best(self) -> Outcome:
        return self.ranked[0]

    @property
    def winner(self) -> Outcome:
        """The best trial, unless further seeds have shown that the next is better."""
        return winner_of(self.ranked, self.confirmation)

    @property
    def counts(self) -> dict[str, int]:
        states = [one.state for one in self.outcomes]
        return {state: states.count(state) for state in ("finished", "stopped", "failed")}


def winner_of(ranked: list[Outcome], found: Confirmation | None) -> Outcome:
    return found.other if found and found.test and found.test.verdict == "worse" else ranked[0]


def result_of(study: Study, folder: Path) -> SweepResult:
    ranked, config = study.ranked(), study.config
    confirmation = confirmation_of(study, folder)
    values = winner_of(ranked, confirmation).values
    command = ["python", "-m", f"pipelines.{config.stage}", *arguments_of(config, values)]
    model = trial_folder(folder, f"{ranked[0].number:03d}") / ("finetune" if config.stage == "main" else "") / "model"
    return SweepResult(
        study.notes["run_id"],
        folder,
        config.metric,
        str(config.goal),
        study.dimensions,
        study.outcomes(),
        ranked,
        study.importances(),
        redact_text(shlex.join(command)),
        confirmation,
        model if is_whole(model) else None,
    )


def is_whole(model: Path) -> bool:
    try:
        return model.is_dir() and bool(verified_hash(model))
    except CheckpointError as error:
        logger.warning("the best trial's model can't be used: %s", error)
        return False


def is_done(study: Study) -> bool:
    """Whether the same command came to its end before, and nothing was asked for since."""
    return bool(study.ranked()) and study.notes.get(DONE) == budget(study) and not study.interrupted()


def budget(study: Study) -> list[float | None]:
    config = study.config
    return [study.limit, config.tokens, config.minutes, config.confirm_seeds]


def log_sweep(run: TrackedRun, study: Study, folder: Path) -> SweepResult:
    """The sweep's own run: the best trial's metrics and values, counts, pictures, the page, and its model."""
    result = result_of(study, folder)
    best, step = result.best, len(result.outcomes)
    counted = {f"trials/{state}": float(count) for state, count in result.counts.items()}
    run.log_metrics({**best.facts.get("metrics", {}), **counted}, step)
    found = {"best_trial": f"{best.number}: {best.name}, {result.metric} {best.value:.5g}, run {best.run_id}"}
    if result.confirmation and result.confirmation.verdict:
        found["confirmed"] = result.confirmation.verdict
    run.set_tags(found | {f"best.{key}": value for key, value in best.values.items()})
    if BEST not in study.notes:  # parameters can't change: a sweep that goes on may find better ones
        run.log_params({f"best.{key}": value for key, value in best.values.items()})
    elif study.notes[BEST] != best.values:
        run.log_params({f"best_of_{step}.{key}": value for key, value in best.values.items()})
    run.log_table(table(result), "trials.json")
    charts = {"progress": progress_chart, "parallel": parallel_chart, "importances": importance_chart}
    for name, chart in charts.items():
        if figure := chart(result).figure():
            run.log_figure(figure, f"{name}.png")
    for dimension in result.dimensions:
        if figure := response_chart(result, dimension).figure():
            run.log_figure(figure, f"response {dimension.key}.png")
    page = sweep_page(result, made_by(run))
    run.log_text(page, PAGE)
    (folder / PAGE).write_text(page, encoding="utf-8")
    if result.model and study.config.tracking.log_model:
        log_best_model(run, study, result.model, best)
    study.note(BEST, best.values)
    study.note(DONE, budget(study))
    return result


def log_best_model(run: TrackedRun, study: Study, folder: Path, best: Outcome) -> None:
    """The best trial's model as one of its own run, which says what it was made from; the sweep's run names it."""
    client, run_id = MlflowClient(), str(best.facts.get(TRAINED_IN, best.run_id))

    def log() -> str:
        made_in, history = client.get_run(run_id), client.get_metric_history(run_id, LOSS)
        own = [each.step for each in history if each.value == best.facts["metrics"].get(LOSS)]
        inputs = made_in.inputs.dataset_inputs if made_in.inputs else []
        rows = next((each.dataset for each in inputs if each.tags[0].value == "validation"), None)
        fields = {"step": own[0] if own else None, "dataset": (rows.name, rows.digest) if rows else None}
        return log_model_once(folder, made_in, f"best of {run.info.run_id}", fields)

    uri = until_answered(log)
    run.set_tags({"model": uri})
    run.log_model_input(uri.removeprefix("models:/"))


def table(result: SweepResult) -> dict[str, list[object]]:
    """A row a trial, in their order."""
    columns: dict[str, list[object]] = {"trial": [one.number for one in result.outcomes]}
    columns |= {d.key: [one.values[d.key] for one in result.outcomes] for d in result.dimensions}
    columns |= {result.metric: [one.value for one in result.outcomes]}
    columns |= {"state": [one.state for one in result.outcomes], "reason": [one.reason for one in result.outcomes]}
    columns |= {"seconds": [one.facts.get("seconds") for one in result.outcomes]}
    return columns | {"run": [one.run_id for one in result.outcomes]}
