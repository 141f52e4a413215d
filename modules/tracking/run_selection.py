"""Which run of the tracking store a stage writes to, and in which experiment: new, given or earlier.

What can't be used is refused in one line, before any work.
"""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import suppress

import mlflow
from mlflow import ActiveRun, MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import fluent
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_PROJECT_ENTRY_POINT, MLFLOW_RUN_NOTE
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from ..config.base import StageConfig, TrackingConfig, shown
from ..config.commands import TRAINING_STAGES
from ..system.redaction import redact_text
from .outbox.store import why
from .run_lifecycle import END, RUNNING, set_tags

logger = logging.getLogger("moyun.tracking")

EXPERIMENT = "moyun"
"""Where runs go if neither the configuration nor the environment says so."""

DEFAULT, DEFAULT_ID = "Default", "0"
"""MLflow's own experiment, where it puts the runs of those who name none."""

RUN_ID, EXPERIMENT_ID, EXPERIMENT_NAME = "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"

COMMAND_RUN = "MOYUN_COMMAND_RUN"
"""Environment variable: the run that `mlflow run` made, where the stage makes another; its processes all see it."""

UNUSED = "moyun.unused"
"""Tag of a run that `mlflow run` made and no stage has used."""

LONGEST_NAME = 100

MLFLOW_RUN_ENDS = 60.0
"""Seconds after which `mlflow run` is surely done with its run."""


def open_run(stage: str, config: StageConfig, parent: ActiveRun | None, name: str) -> ActiveRun:
    """A new run, below `parent` where there is one; under `mlflow run` the run that the command made, unless that is
    in Default. A name that `mlflow run` was given is kept.
    """
    # start_run itself finds MLFLOW_RUN_ID and takes it out of the environment, so that nested runs don't find it too.
    given = None if parent else given_run_id()
    command_id = None if parent else os.environ.pop(COMMAND_RUN, None)
    if given:
        require_usable(stage, given, config.tracking)
        experiment = None
    else:
        experiment = parent.info.experiment_id if parent else experiment_for(config.tracking)
    command = MlflowClient().get_run(found) if (found := given or command_id) else None
    origin = {key: text for key, text in command.data.tags.items() if key.startswith("mlflow.")} if command else {}
    run = mlflow.start_run(
        run_name=(name_given_to(command) if command else None) or name,
        experiment_id=experiment,
        nested=parent is not None,
        tags={**(origin if command_id else {}), "stage": stage, END: RUNNING},
        log_system_metrics=False,
    )
    if command_id:
        retire_command_run(stage, command_id, "RUNNING", f"went on in run {run.info.run_id}")
    return run


def name_given_to(run: Run) -> str | None:
    """A run's name; None for one that MLflow made up, as bold-fox-123."""
    name = run.info.run_name or ""
    predicate, _, rest = name.partition("-")
    noun, _, number = rest.partition("-")
    made_up = predicate in _GENERATOR_PREDICATES and noun in _GENERATOR_NOUNS and number.isdigit()
    return None if made_up else name or None


def is_in_default(stage: str, tracking: TrackingConfig) -> bool:
    """Whether `mlflow run`, given no experiment, has made its run in Default: the stage then makes another in moyun's.

    To be asked where the stage's own command begins: what else may have made a run there isn't ours to replace.
    """
    run_id = given_run_id()
    command = MlflowClient().get_run(run_id) if run_id else None
    named = tracking.experiment_name or os.environ.get(EXPERIMENT_NAME)
    if not command or not unused_by(stage, command) or named == DEFAULT:
        return False
    return command.info.experiment_id == DEFAULT_ID and MLFLOW_PARENT_RUN_ID not in command.data.tags


def unused_by(stage: str, run: Run) -> bool:
    """Whether `mlflow run` made a run for this stage, and no stage has begun in it."""
    tags, active = run.data.tags, run.info.lifecycle_stage == LifecycleStage.ACTIVE
    return bool(active and tags.get(MLFLOW_PROJECT_ENTRY_POINT) == stage and END not in tags)


def retire_command_run(stage: str, run_id: str, status: str, reason: str) -> bool:
    """The run that `mlflow run` made says why nothing stands in it; returns whether it was such a run.

    `mlflow run` fails at the end where its run was deleted meanwhile, so remove_retired_runs does that later.
    """
    client = MlflowClient()
    if not unused_by(stage, client.get_run(run_id)):
        return False
    set_tags(run_id, {END: reason, UNUSED: "true", MLFLOW_RUN_NOTE: reason})
    client.update_run(run_id, status=status, name=f"{stage}: {reason}"[:LONGEST_NAME])
    return True


def remove_retired_runs(experiment_id: str) -> None:
    """Deletes the runs that `mlflow run` made and no stage used, once it has ended; never raises."""
    client = MlflowClient()
    try:
        for run in client.search_runs([DEFAULT_ID, experiment_id], f"tags.`{UNUSED}` = 'true'"):
            if run.info.end_time and time.time() - run.info.end_time / 1000 > MLFLOW_RUN_ENDS:
                client.delete_run(run.info.run_id)
    except Exception as error:
        logger.debug("tracking: runs that no stage used weren't deleted: %s", why(error))


def give_way(stage: str, run_id: str) -> None:
    """The run that was made for this process is removed, or points to the earlier one that goes on instead."""
    for command in filter(None, (os.environ.pop(name, None) for name in (RUN_ID, COMMAND_RUN))):
        reason = f"went on in run {run_id}"
        if command != run_id and not retire_command_run(stage, command, "RUNNING", reason):
            set_tags(command, {"stage": stage, "moyun.continues": run_id, END: reason})


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
    if (other := run.data.tags.get("stage", stage)) != stage and END in run.data.tags:
        raise ValueError(f"MLFLOW_RUN_ID={run_id} is the run of another stage, {other}: take it out of the environment")


def experiment_for(tracking: TrackingConfig, make: bool = True) -> str | None:
    """Id of the experiment that a new run goes to; one that isn't there yet is made, or None without `make`.

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
            known = client.get_experiment_by_name(name or EXPERIMENT)
            if not known and not make:
                return None
            found = known or made_experiment(client, name or EXPERIMENT)
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


def find_run(run_id: str, stage: str | None = None) -> Run:
    """The run of a stage that is to go on. Raises ValueError if the store has none of that id, or it was deleted."""
    otherwise = f" {WITHOUT}" if stage in TRAINING_STAGES else ""
    client = MlflowClient()
    try:
        run = client.get_run(run_id)
        experiment = client.get_experiment(run.info.experiment_id)
    except MlflowException as error:
        raise ValueError(
            f"run {run_id} can't be continued: {why(error)} (tracking store: "
            f"{redact_text(mlflow.get_tracking_uri())}). Give the store that it was made in.{otherwise}"
        ) from None
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        what, command = f"its experiment {experiment.name}", restoring("experiments", experiment.experiment_id)
    elif run.info.lifecycle_stage == LifecycleStage.DELETED:
        what, command = "it", restoring("runs", run_id)
    else:
        return run
    raise ValueError(f"run {run_id} can't be continued: {what} was deleted. `{command}` brings it back.{otherwise}")


WITHOUT = (
    "Or go on without that run: its checkpoints are whole, and with another output_dir "
    "train.resume_from=OLD_FOLDER/checkpoints/last.ckpt begins a new run at their step"
)
"""What else can be done there where the store has lost a run."""
