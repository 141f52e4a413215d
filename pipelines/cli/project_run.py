"""Under `mlflow run` MLflow has made a run before a stage begins: what becomes of one that the stage doesn't use."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from modules.config.base import StageConfig
from modules.config.commands import STAGES
from modules.system.redaction import redact_text
from modules.system.signals import is_main_process, is_worker

MADE = ("MLFLOW_RUN_ID", "MOYUN_COMMAND_RUN")
"""Environment variables that name it: MLflow's, and the one that run_selection.py reads in its place."""


def settle_project_run(stage: str, config: Any) -> None:
    """Where `mlflow run` was given no experiment, the stage's run goes to moyun's, and not to MLflow's Default."""
    if not isinstance(config, StageConfig) or is_worker() or not os.environ.get(MADE[0], "").strip():
        return
    from modules.tracking.run_selection import is_in_default
    from modules.tracking.stage_run import connected

    with contextlib.suppress(Exception):  # what is wrong with the store, the stage says
        with connected(config.tracking):
            moves = is_in_default(stage, config.tracking)
        if moves:
            os.environ[MADE[1]] = os.environ.pop(MADE[0])
            os.environ.pop("MLFLOW_EXPERIMENT_ID", None)


def retire_project_run(stage: str, code: int, message: str) -> None:
    """The run that `mlflow run` made says why no stage has begun in it: a refusal or a dry run is no run of ours."""
    made = [run_id for name in MADE if (run_id := os.environ.get(name, "").strip())]
    if not made or not issubclass(STAGES[stage], StageConfig) or not is_main_process():
        return
    from modules.tracking.run_selection import retire_command_run
    from modules.tracking.stage_run import connected

    refused = "refused" if code in (1, 2) else "stopped before it began"
    status, reason = ("FAILED", f"{refused}: {message}") if code else ("FINISHED", "a dry run, or done before")
    with contextlib.suppress(Exception), connected():  # it may be in no store that answers
        for run_id in made:
            retire_command_run(stage, run_id, status, redact_text(" ".join(reason.split()))[:5000])
