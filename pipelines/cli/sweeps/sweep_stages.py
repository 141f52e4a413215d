"""The stages as a sweep calls them: each once before it begins, without any work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from importlib import import_module
from io import StringIO
from typing import Any

from modules.config.loader import load_config
from modules.config.sweeps.command import SweepConfig
from modules.config.sweeps.space import Values, arguments_of
from modules.evaluation.sweeps.study import PRECISION, Study
from modules.training.precision import settle_precision

PLANNED_BY = ("batch_size", "batch_tokens", "micro_batch_tokens", "init_from", "max_steps", "max_epochs")
"""Keys of the section train that a dry run depends on; the others it only repeats."""


def stage_function(stage: str) -> Callable[[Any], Any]:
    found: Callable[[Any], Any] = getattr(import_module(f"pipelines.{stage}"), stage)
    return found


def try_out(config: SweepConfig, samples: list[Values]) -> None:
    """The stage's own dry run, with each value that reading and planning depend on: what it refuses is known now."""
    base = samples[0]
    for values in samples:
        changed = [key for key in values if values[key] != base[key]]
        if values is not base and (config.stage == "main" or not any(map(is_planned_by, changed))):
            continue
        stage = load_config(config.stage, arguments_of(config, values))
        stage.dry_run, stage.tracking = True, replace(config.tracking)
        if config.stage != "main":
            stage.trainer.progress_bar = False
        try:
            with redirect_stdout(sys.stdout if values is base else StringIO()):
                stage_function(config.stage)(stage)
        except ValueError as error:
            given = " ".join(f"{key}={value}" for key, value in values.items())
            raise type(error)(f"with {given}: {error}") from None


def is_planned_by(key: str) -> bool:
    section, _, name = key.rpartition(".")
    return section != "train" or name in PLANNED_BY


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
