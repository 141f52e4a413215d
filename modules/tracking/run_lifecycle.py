"""How a run of the tracking store goes on and ends, and how runs are found whose process was killed.

`stage_run` calls these in that order, after run_selection.py. A tag of a run says how it ended (`END`); whether its
process is there, the lock of its local log.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from mlflow import ActiveRun, MlflowClient
from mlflow.entities import Run, RunTag
from mlflow.tracking import fluent

from ..system.process_locks import is_locked
from ..system.redaction import first_line
from .outbox.spool import LOCK, last_record, unsent
from .outbox.store import why

logger = logging.getLogger("moyun.tracking")

END = "end"
"""Tag of every run: how it ended, in words."""

RUNNING = "still running"
GONE = "its process is gone"
"""What END says of a run whose process was killed before it could say more."""

HOST, PID, STARTED = "moyun.host", "moyun.pid", "moyun.process_started"
"""Tags by which earlier versions named the process of a run."""

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError)

# moyun uses one private name of MLflow's, the stack of active runs. mlflow.start_run(run_id) and mlflow.end_run would
# do the same, but wait for the store, and may fail there. Should the name change, the first test of
# tests/tracking/test_tracking.py fails.


def activate(run: Run) -> ActiveRun:
    """Makes a run of the store MLflow's active run, without asking the store."""
    active = ActiveRun(run)
    fluent._active_run_stack.get().append(active)
    return active


def deactivate(run_id: str) -> None:
    """Takes a run from MLflow's active ones, without asking the store."""
    stack = fluent._active_run_stack.get()
    stack[:] = [run for run in stack if run.info.run_id != run_id]


@contextmanager
def outside_of_runs() -> Iterator[None]:
    """MLflow has no active run within the block, in this thread."""
    stack = fluent._active_run_stack.get()
    active = list(stack)
    stack.clear()
    try:
        yield
    finally:
        stack[:] = active


def reopen_run(run: Run) -> None:
    """Marks a run as running again."""
    set_tags(run.info.run_id, {END: RUNNING})
    MlflowClient().update_run(run.info.run_id, status="RUNNING")


def newer_in_store(run: Run, earlier: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """The metrics of which the store has later steps than the local log (`earlier`): made elsewhere, or lost here."""
    last = {name: max(step for step, _ in series) for name, series in earlier.items() if series}
    latest = run.data.to_proto().metrics  # each metric's last step, without its history
    return metric_history(run.info.run_id, [m.key for m in latest if m.step > last.get(m.key, -1)])


def metric_history(run_id: str, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Metric → (step, value), the first value of each step: a second one is the saved model's (logged_models.py)."""
    client = MlflowClient()
    found = {name: sorted(client.get_metric_history(run_id, name), key=lambda m: m.timestamp) for name in names}
    first = {name: {m.step: m.value for m in reversed(values)} for name, values in found.items()}
    return {name: list(reversed(values.items())) for name, values in first.items()}


def end_of(error: BaseException) -> tuple[str, str]:
    """(status, END) of a run that an error ends."""
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == 128 + signal.SIGINT):
        return "KILLED", "interrupted (Ctrl-C)"
    if isinstance(error, SystemExit):
        return "KILLED", "terminated (SIGTERM)"
    if isinstance(error, USER_ERRORS):
        return "FAILED", f"failed: {first_line(error)}"
    return "FAILED", f"failed: {type(error).__name__}: {first_line(error)}"


def mark_killed_runs(active: Run, root: Path) -> None:
    """Sets runs of the same experiment that say they are running, but were killed on this machine, to KILLED.

    `root` is the folder of the runs' local logs. An error of the store is no error of the stage.
    """
    client = MlflowClient()
    try:
        for run in client.search_runs([active.info.experiment_id], f"tags.`{END}` = '{RUNNING}'"):
            run_id, folder = run.info.run_id, root / run.info.run_id
            if run_id == active.info.run_id or not was_killed(run.data.tags, folder):
                continue
            if unsent(folder):
                logger.warning("tracking: run %s left unsent records: `python -m pipelines.sync` sends them", run_id)
                if last_record(folder).get("kind") == "status":
                    continue  # which will tell how it ended
            if run.info.status == "RUNNING":
                client.update_run(run_id, status="KILLED")
            set_tags(run_id, {END: GONE})
    except Exception as error:
        logger.debug("tracking: runs whose process was killed weren't marked: %s", why(error))


def host() -> str:
    """This machine, and the container in it whose process numbers are meant."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def was_killed(tags: Mapping[str, str], folder: Path) -> bool:
    """By the lock of its local log, which holds across containers; a run whose log isn't here is not ours to judge.

    But one of an earlier version whose tags name a process of this machine.
    """
    if (folder / LOCK).exists():
        return not is_locked(folder / LOCK)
    if tags.get(HOST) != host():
        return False
    try:
        started = psutil.Process(int(tags[PID])).create_time()
    except psutil.NoSuchProcess:
        return True
    return abs(started - float(tags[STARTED])) >= 60  # by less its start may seem to move when the clock is set


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """All in one request."""
    MlflowClient().log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
