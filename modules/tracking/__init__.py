"""MLflow runs that outlive their store: a stage writes to a local log first, a thread sends it."""

from __future__ import annotations

from .provenance import git_state, provenance
from .stage_run import connect, log_rows, metric_history, open_runs, stage_run
from .tracked_run import TrackedRun

__all__ = [
    "TrackedRun",
    "connect",
    "git_state",
    "log_rows",
    "metric_history",
    "open_runs",
    "provenance",
    "stage_run",
]
