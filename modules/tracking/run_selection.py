"""Which run of the tracking store a stage writes to, and in which experiment: new, given or earlier.

What can't be used is refused in one line, before any work.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

import mlflow
from mlflow import ActiveRun, MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import fluent

from ..config.base import StageConfig, TrackingConfig, shown
from ..system.redaction import redact_text
from .outbox.store import why
from .run_lifecycle import PID, owner_tags

EXPERIMENT = "moyun"
"""Where runs go if neither the configuration nor the environment says so."""

RUN_ID, EXPERIMENT_ID, EXPERIMENT_NAME = "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"


def open_run(stage: str, config: StageConfig, parent: ActiveRun | None) -> ActiveRun:
    """A new run, below `parent` where there is one; under `mlflow run` the run that the command made."""
    # start_run itself finds MLFLOW_RUN_ID and takes it out of the environment, so that nested runs don't find it too.
    given = None if parent else given_run_id()
    if given:
        require_usable(stage, given, config.tracking)
        experiment = None
    else:
        experiment = parent.info.experiment_id if parent else experiment_for(config.tracking)
    return mlflow.start_run(
        run_name=None if given else stage,
        experiment_id=experiment,
        nested=parent is not None,
        tags={"stage": stage, **owner_tags()},
        log_system_metrics=False,
    )


def given_run_id() -> str | None:
    """The run that `mlflow run`, or whoever starts this process, has made for it. ValueError for what is no id."""
    given = os.environ.get(RUN_ID, "").strip()
    if given and not re.fullmatch(r"[a-zA-Z0-9][\w-]{0,255}", given):
        raise ValueError(f"MLFLOW_RUN_ID={shown(given)} is no id of a run: take it out of the environment")
    if given:
        os.environ[RUN_ID] = given  # MLflow would take blanks around it for a part of it
    return given or None


def require_usable(stage: str, run_id: str, tracking: TrackingConfig) -> None:
    """ValueError where MLFLOW_RUN_ID names no run that this stage may write to."""
    store = redact_text(mlflow.get_tracking_uri())
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        if tracking.tracking_uri:
            raise ValueError(
                f"MLFLOW_RUN_ID={run_id} isn't in the store that tracking.tracking_uri names, {store}: `mlflow run` "
                "made it in its own. Leave tracking.tracking_uri out, and set MLFLOW_TRACKING_URI for `mlflow run`"
            ) from None
        raise ValueError(
            f"MLFLOW_RUN_ID={run_id} can't be used: {why(error)} (tracking store: {store}). Take it out of the "
            "environment, or set MLFLOW_TRACKING_URI to its store"
        ) from None
    if run.info.lifecycle_stage == LifecycleStage.DELETED:
        raise ValueError(f"MLFLOW_RUN_ID={run_id} is a run that was deleted: take it out of the environment")
    if (other := run.data.tags.get("stage", stage)) != stage and PID in run.data.tags:
        raise ValueError(f"MLFLOW_RUN_ID={run_id} is the run of another stage, {other}: take it out of the environment")


def experiment_for(tracking: TrackingConfig) -> str:
    """Id of the experiment that a new run goes to; one that isn't there yet is made.

    It is the configured one, else what mlflow.set_experiment chose, else that of the environment. MLflow's own active
    experiment stays as it is: a notebook's next run isn't ours.
    """
    client = MlflowClient()
    chosen = fluent._active_experiment_id if not tracking.experiment_name else None
    if chosen is None or chosen != os.environ.get(EXPERIMENT_ID):  # it was of another store
        chosen = None
    name = tracking.experiment_name or (None if chosen else os.environ.get(EXPERIMENT_NAME))
    given = None if name else chosen or os.environ.get(EXPERIMENT_ID)
    try:
        if given:
            found = client.get_experiment(given)
        else:
            found = client.get_experiment_by_name(name or EXPERIMENT) or made_experiment(client, name or EXPERIMENT)
    except MlflowException as error:
        said = f"MLFLOW_EXPERIMENT_ID={given}" if given else f"experiment {name}"
        raise ValueError(f"{said} can't be used: {why(error)}; name another with tracking.experiment_name=…") from None
    if found.lifecycle_stage == LifecycleStage.DELETED:
        raise ValueError(
            f"experiment {found.name} was deleted: `{restoring('experiments', found.experiment_id)}` brings it back, "
            "or name another with tracking.experiment_name=…"
        )
    return str(found.experiment_id)


def made_experiment(client: MlflowClient, name: str) -> Experiment:
    with suppress(MlflowException):  # another process may make it at the same time
        return client.get_experiment(client.create_experiment(name))
    found = client.get_experiment_by_name(name)
    return found or client.get_experiment(client.create_experiment(name))


def restoring(kind: str, number: str) -> str:
    """The command that brings back what was deleted."""
    option = "--run-id" if kind == "runs" else "--experiment-id"
    return f"MLFLOW_TRACKING_URI={redact_text(mlflow.get_tracking_uri())} mlflow {kind} restore {option} {number}"


def find_run(run_id: str) -> Run:
    """The run that is to go on. Raises ValueError if the store has none of that id, or it was deleted."""
    client = MlflowClient()
    try:
        run = client.get_run(run_id)
        experiment = client.get_experiment(run.info.experiment_id)
    except MlflowException as error:
        raise ValueError(
            f"run {run_id} can't be continued: {why(error)} (tracking store: "
            f"{redact_text(mlflow.get_tracking_uri())}). Give the store that it was made in. {WITHOUT}"
        ) from None
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        what, command = f"its experiment {experiment.name}", restoring("experiments", experiment.experiment_id)
    elif run.info.lifecycle_stage == LifecycleStage.DELETED:
        what, command = "it", restoring("runs", run_id)
    else:
        return run
    raise ValueError(f"run {run_id} can't be continued: {what} was deleted. `{command}` brings it back. {WITHOUT}")


WITHOUT = (
    "Or go on without that run: its checkpoints are whole, and with another output_dir "
    "train.resume_from=OLD_FOLDER/checkpoints/last.ckpt begins a new run at their step"
)
"""What else can be done where a run is gone from the store."""
