"""The whole way as one MLflow run with the stages nested in it: `mlflow run .`"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from modules.config.base import EMBEDDED
from modules.config.commands import MADE_BY_STAGE, MainConfig
from modules.config.loader import load_config
from modules.evaluation.baselines import NAMES
from modules.system.redaction import redact_text
from modules.tracking.stage_run import connect, stage_run

from .cli.command_line import run_stage
from .cli.printing import console, show
from .evaluate import EvaluateResult, evaluate
from .finetune import finetune
from .prepare import prepare
from .pretrain import pretrain
from .register import RegisterResult, register

PLACES = ("path", "init_from", "model", "baseline")
"""Keys that may name what an earlier stage made."""


def main(config: MainConfig) -> None:
    check_unused(config)
    with stage_run("main", config):
        made = {"prepare": str(prepare(config.prepare).folder), "start": EMBEDDED}
        first = config.pretrain if config.from_scratch else config.finetune
        first.dry_run |= config.dry_run
        if config.from_scratch:
            made["start"] = str(pretrain(wire(config.pretrain, made)).model)
        if config.from_scratch and config.dry_run:
            return
        finetuned = finetune(wire(config.finetune, made))
        if config.dry_run:
            return
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
        summarize(config, evaluated, registered)


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
            folder, name = made[match[1]], match[2]
            inside = Path(folder) / name
            setattr(config, field.name, str(inside) if name and inside.exists() else folder)
    return config


def summarize(config: MainConfig, evaluated: EvaluateResult, registered: RegisterResult) -> None:
    names = {"baseline": "before fine-tuning", "model": "after fine-tuning"}
    found = {name: e["perplexity_per_char"] for name, e in evaluated.evaluations.items() if "perplexity_per_char" in e}
    floor = {name: found[name].value for name in NAMES if name in found}
    rows, after = len(found["model"].statistics), found["model"].value
    numbers = {
        **{names[name]: f"{found[name].value:.1f}" for name in names if name in found},
        **{f"floor: {name}": f"{value:.1f}" for name, value in floor.items()},
    }
    show(f"Perplexity per character on {rows} test rows (lower is better)", numbers)
    if floor:
        best = min(floor, key=lambda name: floor[name])
        side = "below" if after < floor[best] else "above"
        console.print(
            f"  The model is {side} the best floor, the {best}: it predicts these rows "
            f"{'better' if side == 'below' else 'worse'} than n-grams of its fine-tuning rows.\n"
        )
    show("Sampled continuations", {sample["prompt"]: sample["text"] for sample in evaluated.samples[:3]})
    name, alias = config.model_name, config.register.alias
    show("Registered", {f"{name} version {registered.version}": f"{alias} {registered.reason}"})
    uri = redact_text(connect(config.tracking))
    console.print("\n[bold]Try next[/bold] (after: source .venv/bin/activate)")
    console.print(f"  mlflow ui --backend-store-uri '{uri}'", soft_wrap=True)
    console.print(f"  python -m pipelines.generate '白日依山尽，' model=models:/{name}@{alias}", soft_wrap=True)
    console.print(
        f"  MLFLOW_TRACKING_URI='{uri}' mlflow models serve -m 'models:/{name}@{alias}' --env-manager local -p 5001",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_stage("main", main)
