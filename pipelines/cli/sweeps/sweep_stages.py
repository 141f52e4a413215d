"""The stages as a sweep calls them: each once before it begins, without any work."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from importlib import import_module
from io import StringIO
from typing import Any

from mlflow.exceptions import MlflowException

from modules.config.base import POEMS
from modules.config.commands import MainConfig, wire
from modules.config.loader import load_config
from modules.config.sweeps.command import SweepConfig
from modules.config.sweeps.space import Values, arguments_of
from modules.config.training import TrainingConfig
from modules.evaluation.sweeps.early_end import REMEDIES, Rows, differences, rows_of
from modules.evaluation.sweeps.study import PRECISION, Study
from modules.tracking.reuse.stage_key import stage_key
from modules.tracking.stage_run import run_around
from modules.tracking.tracked_run import TrackedRun
from modules.training.precision import settle_precision
from modules.training.setup import fingerprints_of

from ...main import check_unused, stages
from ..once import Once

PLANNED_BY = ("batch_size", "batch_tokens", "micro_batch_tokens", "init_from", "max_steps", "max_epochs")
"""Keys of the section train that a dry run depends on; the others it only repeats."""


def stage_function(stage: str) -> Callable[[Any], Any]:
    found: Callable[[Any], Any] = getattr(import_module(f"pipelines.{stage}"), stage)
    return found


def finetune_of_main(
    config: MainConfig, run: Callable[[], TrackedRun] | None, finetune: Callable[[TrainingConfig], Any]
) -> Any:
    """`finetune` in the place of main's, after the stages before it. The later ones, which see the test rows, aren't
    called; None where a dry run doesn't come as far."""
    check_unused(config)
    once, found = Once(run, config.forced), []

    def call(stage: str, wired: Any, function: Callable[[Any], Any]) -> Any:
        if stage != "finetune":
            return once(stage, wired, function)
        found.append(finetune(wired))
        return None  # and so main's stages end

    stages(config, call)
    return found[0] if found else None


def plan_of(config: SweepConfig, values: Values) -> Any:
    """The stage's dry run, with a trial's values."""
    stage = load_config(config.stage, arguments_of(config, values))
    stage.dry_run, stage.tracking = True, replace(config.tracking)

    def plan(training: TrainingConfig) -> Any:
        training.dry_run, training.trainer.progress_bar = True, False
        return stage_function("finetune" if config.stage == "main" else config.stage)(training)

    if config.stage != "main":
        return plan(stage)
    with run_around("main", stage):
        return finetune_of_main(stage, None, plan)


def try_out(config: SweepConfig, samples: list[Values]) -> Rows | None:
    """A dry run with each value that reading and planning depend on: what the stage refuses is known now.

    Returns what the rows of all trials have in common; None where that isn't known yet. ValueError where their scores
    couldn't be compared.
    """
    base, rows = samples[0], None
    for values in samples:
        changed = [key for key in values if values[key] != base[key]]
        if values is not base and not any(map(is_planned_by, changed)):
            continue
        try:
            with redirect_stdout(sys.stdout if values is base else StringIO()):
                planned = plan_of(config, values)
            if planned:
                found = rows_of(config, fingerprints_of(planned.setup), planned.setup.data)
                rows = rows or found
                require_comparable(config, rows, found, changed)
        except ValueError as error:
            given = " ".join(f"{key}={value}" for key, value in values.items())
            raise type(error)(f"with {given}: {error}") from None
    return rows


def origin_of(config: SweepConfig, samples: list[Values]) -> str | None:
    """A digest of all that trials come from: what their keys say and name, code, versions. None where it isn't known,
    as of rows that aren't on this machine."""
    with suppress(MlflowException):  # a model is named that a store has which is away
        keys = [key_of(config, values) for values in samples]
        if all(keys):
            return hashlib.sha256(" ".join(map(str, keys)).encode()).hexdigest()
    return None


def key_of(config: SweepConfig, values: Values) -> str | None:
    """The stage's key with a trial's values, wherever it writes; of main finetune's, by the keys of those before."""
    stage = load_config(config.stage, arguments_of(config, values))
    steps: dict[str, Any] = {config.stage: stage}
    if config.stage == "main":
        names = ("prepare", "pretrain", "finetune") if stage.from_scratch else ("prepare", "finetune")
        steps = {name: getattr(stage, name) for name in names}
    made, known, key = {"start": POEMS}, dict[str, str](), None
    for name, step in steps.items():
        step = wire(step, made)
        step.output_dir = os.sep
        key, _ = stage_key(name, step, known)
        if key is None:
            return None
        made["start" if name == "pretrain" else name] = f"<{name}>"
        known[f"<{name}>"] = key
    return key


def require_comparable(config: SweepConfig, rows: Rows, others: Rows, changed: list[str]) -> None:
    if other := differences(rows, others):
        keys = " or ".join(f"space.{key}" for key in changed)
        raise ValueError(
            f"a trial's {config.metric} couldn't be compared with the others', as {keys} changes the "
            f"{' and the '.join(other)}; {REMEDIES[other[-1]]}"
        )


def is_planned_by(key: str) -> bool:
    *sections, name = key.split(".")
    return sections[-1:] != ["train"] or name in PLANNED_BY


def settle_formats(study: Study, values: Values) -> None:
    """The number format is measured once for all trials, also those after a kill: each by itself might find another."""
    if PRECISION in study.notes:
        return
    found = load_config(study.config.stage, arguments_of(study.config, values))
    stages = {"finetune.": found.finetune, "pretrain.": found.pretrain} if study.config.stage == "main" else {"": found}
    formats = {}
    for prefix, stage in stages.items():
        settle_precision(stage.trainer)
        formats[f"{prefix}trainer.precision"] = stage.trainer.precision
    used = [key for key in formats if not key.startswith("pretrain.") or "from_scratch=true" in study.config.given]
    study.note(PRECISION, [f"{key}={formats[key]}" for key in used if key not in values])
