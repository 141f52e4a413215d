"""A process of a sweep (modules/evaluation/sweeps/workers.py): a job is a line of JSON on standard input.

What the stages print goes to each trial's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules.config.base import TrackingConfig
from modules.config.loader import load_config
from modules.config.sweeps.command import SweepConfig
from modules.config.training import TrainingConfig
from modules.evaluation.sweeps.confirmation import save_scores
from modules.evaluation.sweeps.early_end import EarlyEnd, EndsSweepError, SameRows, value_of
from modules.evaluation.sweeps.study import Study
from modules.evaluation.sweeps.trial_outcome import TRAINED_IN
from modules.evaluation.sweeps.trials import ROWS
from modules.system.process_locks import take_lock
from modules.system.redaction import first_line
from modules.system.signals import Stopped, stop_with_parent, stopping_at_once
from modules.tracking.outbox.store_check import require_store
from modules.tracking.stage_run import connected, run_around
from modules.training import fit

from ..command_line import USER_ERRORS, quieten_libraries
from ..redacted_output import redact_output
from .sweep_stages import finetune_of_main, stage_function


def work(lock: Path) -> None:
    """Takes jobs until there are no more, or the sweep ends."""
    stop_with_parent()
    take_lock(lock, f"process {os.getpid()}")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    quieten_libraries()
    redact_output()
    with stopping_at_once(), contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            job = json.loads(line)
            write_to(Path(job["log"]))
            print(json.dumps(answer_of(job)), file=answers, flush=True)


def write_to(log: Path) -> None:
    """Whatever is printed from now on, by libraries too."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def answer_of(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"metrics": {}, "tokens": 0} | run_trial(job)
    except (Stopped, KeyboardInterrupt):
        raise
    except EndsSweepError as error:
        return {"fatal": str(error)}
    except BaseException as error:
        traceback.print_exc()
        known = isinstance(error, USER_ERRORS)
        said = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
        return {"away" if store_is_away(sweep_of(job).tracking) else "error": said}
    finally:
        fit.also_called.clear()


def store_is_away(config: TrackingConfig) -> bool:
    """Then the trial may have failed for that alone, and is begun again when the store is back."""
    try:
        with connected(config) as uri:
            require_store(uri)
    except ValueError:
        return True
    return False


def sweep_of(job: dict[str, Any]) -> SweepConfig:
    return SweepConfig(**{**job["sweep"], "tracking": TrackingConfig(**job["sweep"]["tracking"])})


def run_trial(job: dict[str, Any]) -> dict[str, Any]:
    """The stage, in the MLflow run that the sweep has made for it."""
    sweep = sweep_of(job)
    config = load_config(sweep.stage, job["arguments"])
    os.environ["MLFLOW_RUN_ID"] = job["run_id"]
    if sweep.stage != "main":
        return train(job, sweep, config, replace(sweep.tracking, run_name=job["name"], log_model=False))
    for stage in (config, config.prepare, config.pretrain):
        stage.tracking = sweep.tracking
    if config.from_scratch:  # else nothing may be said of a pretraining
        config.pretrain.trainer.progress_bar = False
    with run_around("main", config) as around:
        quiet = replace(sweep.tracking, log_model=False)
        answer: dict[str, Any] = finetune_of_main(config, lambda: around.run, lambda it: train(job, sweep, it, quiet))
        around.run.log_metrics(answer["metrics"])
    return answer


def train(job: dict[str, Any], sweep: SweepConfig, config: TrainingConfig, tracking: TrackingConfig) -> dict[str, Any]:
    config.tracking, config.trainer.progress_bar = tracking, False
    number, study, rows = job.get("number"), None, None
    if number is not None:
        study = Study(Path(job["folder"]), sweep, [])
        rows = SameRows(sweep, number, str(config.output_dir), study.notes.get(ROWS))
        fit.also_called += [rows, EarlyEnd(study, number)]
    result = stage_function("finetune" if sweep.stage == "main" else sweep.stage)(config)
    metrics = dict(result.metrics or {})
    value_of(metrics, sweep.metric)
    if job.get("scores"):
        save_scores(Path(job["scores"]), result.model, config, sweep.metric)
    stopped = study.outcome(number).stopped_at if study and number is not None else None
    plan = result.plan
    tokens = plan.tokens_per_epoch / plan.steps_per_epoch * (stopped or plan.total_steps)
    found = {"metrics": metrics, "tokens": int(tokens), "rows": rows.found if rows else {}}
    return found | {TRAINED_IN: result.run_id}


if __name__ == "__main__":
    work(Path(sys.argv[1]))
