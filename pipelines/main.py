"""The whole way as one MLflow run with the stages nested in it: `mlflow run .`"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from modules.config.base import EMBEDDED
from modules.config.commands import MADE_BY_STAGE, MainConfig
from modules.config.loader import load_config
from modules.tracking.stage_run import connect, stage_run

from .cli.command_line import run_stage
from .cli.summaries import show_whole_way
from .evaluate import EvaluateResult, evaluate
from .finetune import finetune
from .prepare import prepare
from .pretrain import pretrain
from .register import register

PLACES = ("path", "init_from", "model", "baseline")
"""Keys that may name what an earlier stage made."""


def main(config: MainConfig) -> EvaluateResult | None:
    """What was evaluated; None after a dry run."""
    check_unused(config)
    with stage_run("main", config):
        made = {"prepare": str(prepare(config.prepare).folder), "start": EMBEDDED}
        first = config.pretrain if config.from_scratch else config.finetune
        first.dry_run |= config.dry_run
        if config.from_scratch:
            made["start"] = str(pretrain(wire(config.pretrain, made)).model)
        if config.from_scratch and config.dry_run:
            return None
        finetuned = finetune(wire(config.finetune, made))
        if config.dry_run:
            return None
        if not finetuned.model_uri:
            raise ValueError(
                f"the model of run {finetuned.run_id} couldn't be sent to the tracking store, where evaluate and "
                f"register look for it: `python -m pipelines.sync` sends it; it stands in {finetuned.model} until then"
            )
        made["finetune"] = finetuned.model_uri  # what MLflow holds already, so that register logs no second copy
        made["start"] = str(config.finetune.train.init_from)  # may be another than was meant for it
        evaluated = evaluate(wire(config.evaluate, made))
        registered = register(wire(config.register, made))
        assert registered is not None
        show_whole_way(config, connect(config.tracking), evaluated, registered)
        return evaluated


def check_unused(config: MainConfig) -> None:
    """ValueError for what is said of a pretraining that there won't be."""
    usual = load_config("main")
    shared = {"seed": usual.pretrain.seed, "tracking": usual.pretrain.tracking, "model": usual.pretrain.model}
    unused = {
        "model": config.model != usual.model,
        "pretrain": dataclasses.replace(config.pretrain, **shared) != usual.pretrain,
    }
    for key in (key for key, given in unused.items() if given and not config.from_scratch):
        raise ValueError(
            f"{key}: what is given there is for a model that is pretrained first: give from_scratch=true with it; "
            "without it nothing is pretrained"
        )


def wire(config: Any, made: dict[str, str]) -> Any:
    """Puts what earlier stages made in place of <STAGE>; <prepare>/SET is the whole folder where it has no such set."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            wire(value, made)
        elif field.name in PLACES and value and (match := MADE_BY_STAGE.fullmatch(value)):
            inside = Path(made[match[1]], match[2])
            setattr(config, field.name, str(inside) if match[2] and inside.exists() else made[match[1]])
    return config


if __name__ == "__main__":
    run_stage("main", main)
