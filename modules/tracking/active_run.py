"""MLflow's active run, entered and left without a word to the store, which may be away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import ActiveRun
from mlflow.entities import Run
from mlflow.tracking import fluent


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
