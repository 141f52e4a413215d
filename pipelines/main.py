"""The whole way as one MLflow run with the stages nested in it: `mlflow run .`"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from modules.config import MADE_BY_STAGE, GenerateConfig, MainConfig
from modules.ngram import NAMES
from modules.redaction import redact_text
from modules.tracking import connect, stage_run

from .command_line import console, run_stage, show
from .evaluate import EvaluateResult, evaluate
from .finetune import finetune
from .prepare import prepare
from .pretrain import pretrain
from .register import RegisterResult, register

PLACES = ("path", "init_from", "model", "baseline")
"""Keys that may name what an earlier stage made."""


def main(config: MainConfig) -> None:
    with stage_run("main", config):
        made = {"prepare": str(prepare(config.prepare).folder)}
        config.pretrain.dry_run |= config.dry_run
        pretrained = pretrain(wire(config.pretrain, made))
        if config.dry_run:
            return
        made["pretrain"] = str(pretrained.model)
        finetuned = finetune(wire(config.finetune, made))
        if not finetuned.model_uri:
            raise ValueError(
                f"the model of run {finetuned.run_id} couldn't be sent to the tracking store, where evaluate and "
                f"register look for it: `python -m pipelines.sync` sends it; it stands in {finetuned.model} until then"
            )
        made["finetune"] = finetuned.model_uri  # what MLflow holds already, so that register logs no second copy
        evaluated = evaluate(wire(config.evaluate, made))
        registered = register(wire(config.register, made))
        assert registered is not None
        summarize(config, evaluated, registered)


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
            f"  The model is {side} the best floor, the {best}: it has learnt "
            f"{'more' if side == 'below' else 'less'} than counting does on these rows.\n"
        )
    show("Sampled continuations", {sample["prompt"]: sample["text"] for sample in evaluated.samples[:3]})
    name, alias = config.model_name, config.register.alias
    show("Registered", {f"{name} version {registered.version}": f"{alias} {registered.reason}"})
    uri = redact_text(connect(config.tracking))
    console.print("\n[bold]Try next[/bold] (after: source .venv/bin/activate)")
    console.print(f"  mlflow ui --backend-store-uri '{uri}'", soft_wrap=True)
    model = "" if f"models:/{name}@{alias}" == GenerateConfig.model else f" model=models:/{name}@{alias}"
    console.print(f"  python -m pipelines.generate '白日依山尽，'{model}", soft_wrap=True)
    console.print(
        f"  MLFLOW_TRACKING_URI='{uri}' mlflow models serve -m 'models:/{name}@{alias}' --env-manager local -p 5001",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_stage("main", main)
