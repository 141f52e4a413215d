"""A process of a sweep (modules/evaluation/sweeps/workers.py): a job is a line of JSON on standard input.

What the stages print goes to each trial's log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from modules.config.base import TrackingConfig
from modules.config.loader import load_config
from modules.config.sweeps.command import SweepConfig
from modules.evaluation.sweeps.confirmation import save_scores
from modules.evaluation.sweeps.early_end import EarlyEnd, UnknownMetricError, value_of
from modules.evaluation.sweeps.study import Study
from modules.evaluation.sweeps.trial_outcome import STOPPED_AT
from modules.system.process_locks import take_lock
from modules.system.redaction import first_line
from modules.system.signals import Stopped, stop_with_parent, stopping_at_once
from modules.training import fit
from modules.training.checkpoints.run_manifest import CHECKPOINTS, read_run_manifest

from ..command_line import USER_ERRORS, quieten_libraries
from ..redacted_output import redact_output
from .sweep_stages import stage_function


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
    except UnknownMetricError as error:
        return {"fatal": str(error)}
    except BaseException as error:
        traceback.print_exc()
        known = isinstance(error, USER_ERRORS)
        return {"error": first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"}
    finally:
        fit.also_called.clear()


def run_trial(job: dict[str, Any]) -> dict[str, Any]:
    """The stage, in the MLflow run that the sweep has made for it."""
    sweep = SweepConfig(**{**job["sweep"], "tracking": TrackingConfig(**job["sweep"]["tracking"])})
    config = load_config(sweep.stage, job["arguments"])
    os.environ["MLFLOW_RUN_ID"] = job["run_id"]
    if sweep.stage == "main":
        return run_main(config, sweep)
    config.tracking = dataclasses.replace(sweep.tracking, run_name=job["name"], log_model=False)
    config.trainer.progress_bar = False
    number, study = job.get("number"), None
    if number is not None:
        study = Study(Path(job["folder"]), sweep, [])
        fit.also_called.append(EarlyEnd(study, number))
    result = stage_function(sweep.stage)(config)
    metrics = dict(result.metrics or {})
    value_of(metrics, sweep.metric)
    if job.get("scores"):
        save_scores(Path(job["scores"]), result.model, config.data, config.seed)
    stopped = study.optuna_study.get_trials(deepcopy=False)[number].user_attrs.get(STOPPED_AT) if study else None
    plan = result.plan
    manifest = read_run_manifest(Path(config.output_dir) / CHECKPOINTS)
    tokens = plan.tokens_per_epoch / plan.steps_per_epoch * (stopped or plan.total_steps)
    return {"metrics": metrics, "tokens": int(tokens), "rows": manifest.data if manifest else {}}


def run_main(config: Any, sweep: SweepConfig) -> dict[str, Any]:
    for stage in (config, config.prepare, config.pretrain, config.finetune, config.evaluate, config.register):
        stage.tracking = sweep.tracking
    config.finetune.trainer.progress_bar = False
    if config.from_scratch:  # else nothing may be said of a pretraining
        config.pretrain.trainer.progress_bar = False
    evaluated = stage_function("main")(config)
    assert evaluated
    value_of(evaluated["metrics"], sweep.metric)
    return {"metrics": evaluated["metrics"]}


if __name__ == "__main__":
    work(Path(sys.argv[1]))
