"""The whole way as one MLflow run with the stages nested in it: `mlflow run .`"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from modules.config.base import POEMS
from modules.config.commands import STAGES_OF_MAIN, MainConfig, wire
from modules.config.loader import load_config
from modules.tracking.stage_run import connect, run_around

from .cli.command_line import run_stage
from .cli.once import Once, require_sent
from .cli.summaries import show_whole_way


def main(config: MainConfig) -> dict[str, Any] | None:
    """What is kept of the evaluation (cli/once.py); None after a dry run."""
    check_unused(config)
    with run_around("main", config) as around:
        made = stages(config, Once(None if config.dry_run else lambda: around.run, config.forced))
        if config.dry_run:
            return None
        evaluated, registered = made["evaluate"], made["register"]
        show_whole_way(config, connect(config.tracking), evaluated, registered)
        return evaluated


def stages(config: MainConfig, once: Callable[[str, Any, Callable[[Any], Any]], Any]) -> dict[str, Any]:
    """What each stage made; of a dry run those before the first that would be done."""
    found: dict[str, Any] = {}
    made = {"start": POEMS}
    for stage in STAGES_OF_MAIN:
        if stage == "pretrain" and not config.from_scratch:
            continue
        options = {"recorded": not config.dry_run} if stage == "prepare" else {}
        if not (facts := once(stage, wire(getattr(config, stage), made), partial(done, stage, **options))):
            break
        found[stage] = facts
        if stage == "prepare":
            made["prepare"] = facts["folder"]
        elif stage == "pretrain":
            made["start"] = facts["folder"]
        elif stage == "finetune":
            require_sent(facts)
            made["finetune"] = facts["model_uri"]  # what MLflow holds already, so that register logs no second copy
            made["start"] = str(config.finetune.train.init_from)  # may be another than was meant for it
    return found


def done(stage: str, config: Any, **options: Any) -> Any:
    """The stage's result. What it needs is imported now: that alone takes longer than to find that all is done."""
    return getattr(import_module(f"pipelines.{stage}"), stage)(config, **options)


def check_unused(config: MainConfig) -> None:
    """ValueError for what is said of a pretraining that there won't be."""
    usual = load_config("main")
    shared = {"seed": usual.pretrain.seed, "tracking": usual.pretrain.tracking, "model": usual.pretrain.model}
    pretraining = dataclasses.replace(config.pretrain, **shared) != usual.pretrain
    unused = {"model": config.model != usual.model, "pretrain": pretraining}
    for key in (key for key, given in unused.items() if given and not config.from_scratch):
        raise ValueError(
            f"{key}: what is given there is for a model that is pretrained first: give from_scratch=true with it; "
            "without it nothing is pretrained"
        )


if __name__ == "__main__":
    run_stage("main", main)
