"""How runs of the tracking store begin, go on and end, and what is said of those whose process is gone."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import psutil
from mlflow import ActiveRun, MlflowClient
from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import fluent

from ..config.base import StageConfig
from ..system.locks import is_locked
from ..system.redaction import first_line, redact_text
from .outbox.spool import LOCK, last_record, unsent
from .outbox.store import why


def enter(run: Run) -> ActiveRun:
    active = ActiveRun(run)
    fluent._active_run_stack.get().append(active)
    return active


def leave(run_id: str) -> None:
    """As mlflow.end_run does, which asks the store before anything else can be done."""
    stack = fluent._active_run_stack.get()
    stack[:] = [run for run in stack if run.info.run_id != run_id]


@contextmanager
def inside(run: Run) -> Iterator[ActiveRun]:
    active = enter(run)
    try:
        yield active
    finally:
        leave(run.info.run_id)


logger = logging.getLogger("moyun.tracking")

END = "end"
"""Tag of every run: how it ended."""

RUNNING = "still running"
GONE = "its process is gone"
REFUSED = "refused"
HOST, PID, STARTED = "moyun.host", "moyun.pid", "moyun.process_started"
CONTINUES = "moyun.continues"

SAME_START = 60.0
"""Seconds by which a process's start may seem to move when the clock is set."""

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError)


def open_run(stage: str, config: StageConfig, parent: ActiveRun | None) -> ActiveRun:
    # start_run itself finds MLFLOW_RUN_ID and takes it out of the environment, so that nested runs don't find it too.
    from_command_line = not parent and "MLFLOW_RUN_ID" in os.environ
    if not parent and not from_command_line:
        mlflow.set_experiment(config.tracking.experiment_name)
    return mlflow.start_run(
        run_name=None if from_command_line else stage,
        experiment_id=parent.info.experiment_id if parent else None,
        nested=parent is not None,
        tags={"stage": stage, **owner_tags()},
        log_system_metrics=False,
    )


def find_run(run_id: str) -> Run:
    """A run that is to go on. ValueError if the store has none of that id."""
    try:
        return MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise ValueError(
            f"run {run_id} can't be continued: {why(error)} (tracking store: "
            f"{redact_text(mlflow.get_tracking_uri())}). Give the store that it was made in, or start a new run"
        ) from error


def reopen_run(stage: str, run: Run) -> None:
    """The run is running again; the one that `mlflow run` made for the command says where to look."""
    client, run_id = MlflowClient(), run.info.run_id
    client.log_batch(run_id, tags=run_tags(owner_tags()))
    client.update_run(run_id, status="RUNNING")
    command = os.environ.pop("MLFLOW_RUN_ID", None)
    if command and command != run_id:
        client.log_batch(command, tags=run_tags({"stage": stage, CONTINUES: run_id, END: f"went on in run {run_id}"}))


def newer_in_store(run: Run, earlier: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """Metric → (step, value) where the store is ahead of this machine's log: made elsewhere, or lost with the power."""
    client = MlflowClient()
    ahead = [
        metric.key
        for metric in run.data._metric_objs  # each metric's last step, without its history
        if metric.step > max((step for step, _ in earlier.get(metric.key, ())), default=-1)
    ]
    return {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in ahead}


INTERRUPTED = 128 + signal.SIGINT


def end_of(error: BaseException, began: bool) -> tuple[str, str]:
    """(status, what is said of it) of a run that an error ends; `began`: there were results already."""
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == INTERRUPTED):
        return "KILLED", "interrupted (Ctrl-C)"
    if isinstance(error, SystemExit):
        return "KILLED", "terminated (SIGTERM)"
    if isinstance(error, USER_ERRORS):
        return "FAILED", f"{'failed' if began else REFUSED}: {first_line(error)}"
    return "FAILED", f"failed: {type(error).__name__}: {first_line(error)}"


def earlier_end(run: Run) -> tuple[str, str]:
    """(status, what was said of it) of a run as it was found."""
    if run.info.status == "RUNNING":  # its process didn't get to say more
        return "KILLED", GONE
    return run.info.status, run.data.tags.get(END, "")


def mark_gone(active: Run, root: Path) -> None:
    """Runs that say they are running, whose process was killed here: KILLED. Best effort, one search."""
    client = MlflowClient()
    try:
        for run in client.search_runs([active.info.experiment_id], f"tags.`{END}` = '{RUNNING}'"):
            run_id, folder = run.info.run_id, root / run.info.run_id
            if run_id == active.info.run_id or not is_gone(run.data.tags, folder):
                continue
            if unsent(folder):
                logger.warning("tracking: run %s left unsent records: `python -m pipelines.sync` sends them", run_id)
            if unsent(folder) and last_record(folder).get("kind") == "status":
                continue  # which will tell how it ended
            if run.info.status == "RUNNING":
                client.update_run(run_id, status="KILLED")
            client.log_batch(run_id, tags=run_tags({END: GONE}))
    except Exception as error:
        logger.debug("tracking: runs whose process is gone weren't marked: %s", error)


def owner_tags() -> dict[str, str]:
    process = psutil.Process()
    return {HOST: host(), PID: str(process.pid), STARTED: str(process.create_time()), END: RUNNING}


def host() -> str:
    """This machine, and in it the container whose process numbers are meant."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def is_gone(tags: dict[str, str], folder: Path) -> bool:
    """By the lock of its local log, which holds across containers; where that isn't here, by its process number."""
    if (folder / LOCK).exists():
        return not is_locked(folder / LOCK)
    return tags.get(HOST) == host() and not is_alive(tags)


def is_alive(tags: dict[str, str]) -> bool:
    """Whether the process that a run's tags name still runs, and isn't another one with its number."""
    try:
        started = psutil.Process(int(tags[PID])).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(started - float(tags[STARTED])) < SAME_START


def run_tags(tags: dict[str, Any]) -> list[RunTag]:
    return [RunTag(name, str(value)) for name, value in tags.items()]
