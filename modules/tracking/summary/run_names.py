"""A run's name: its stage and what was given to it that changes results, as `finetune base lr=1e-3 rank=8`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from ...config.assignments import dotted_items
from ...config.base import MISSING, StageConfig
from ...config.commands import STAGES
from ...config.effects.key_effects import Effect, effect_of
from ...config.loader import stage_defaults
from ...config.model import SizeConfig
from ...config.schema import CONF, Key, keys
from ...config.training import TrainingConfig
from ...system.bounded_read import read_plain_yaml
from ...system.redaction import redact
from ...training.precision import settle_precision

LONGEST = 60

SHORT = {
    "learning_rate": "lr", "weight_decay": "wd", "max_steps": "steps", "max_epochs": "epochs", "batch_size": "batch",
    "warmup_steps": "warmup", "sequence_length": "length", "init_from": "from",
}  # fmt: skip
"""The last part of a key → what it is called in a name; others stand as they are."""

PLAIN = ("model", "path", "test_path", "source", "model_name", "name", "sweep")
"""Keys whose values say by themselves what they are."""

NOT_SAID = ("columns", "archive")
"""Last parts of keys that a name leaves out, beside those that change no result."""


def run_name(stage: str, config: StageConfig, around: str | None = None, taken: str | None = None) -> str:
    """tracking.run_name, else stage and values.

    Args:
        around: The stage of the run that it is nested in, as main.
        taken: That run's name: main's stages have its section `tracking`, and so the name that it was given.
    """
    if config.tracking.run_name and config.tracking.run_name != taken:
        return config.tracking.run_name
    name = stage
    for part in dict.fromkeys(parts(stage, config, around)):
        if len(name) + 1 + len(part) > LONGEST:
            return f"{name} …"
        name += f" {part}"
    return name


def parts(stage: str, config: StageConfig, around: str | None) -> Iterator[str]:
    """What differs from the files of conf/, the sections that are given by name first."""
    names, given = what_differs(stage, config, of_main(stage) if around == "main" else usual_values(stage))
    yield from names.values()
    said = {key: value for key, value in given.items() if is_said(config, key, value)}
    for key in sorted(said, key=lambda key: key.rpartition(".")[2] not in PLAIN):
        yield part_of(key, said[key])


def given_keys(stage: str, config: StageConfig) -> dict[str, Any]:
    """Key → value of a command that has this configuration."""
    names, given = what_differs(stage, config, usual_values(stage))
    stages = dict(argument.split("=", 1) for argument in given.pop("given", ()))  # a sweep's, which it takes as its own
    return names | {key: value for key, value in given.items() if not key.endswith("task.name")} | stages


def what_differs(stage: str, config: StageConfig, usual: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """(section → its name in conf/, key → value) beside what is usual."""
    values = dict(dotted_items(redact(asdict(config)), numbered=False)) | settled(config)
    names: dict[str, str] = {}
    for section in (key for key in keys(type(config)) if key.group):
        name, usual = explained(stage, section, values, usual)
        names |= {section.name: name} if name else {}
    return names, differing(values, usual)


def settled(config: StageConfig) -> dict[str, Any]:
    """What was given where something else stands now: trainer.precision=auto, and null where a recipe has set a key."""
    if not isinstance(config, TrainingConfig):
        return {}
    found: dict[str, Any] = dict.fromkeys(config.filled)
    if config.trainer.precision != "auto":
        settle_precision(auto := replace(config.trainer, precision="auto"))
        found |= {"trainer.precision": "auto"} if auto.precision == config.trainer.precision else {}
    return found


def explained(
    stage: str, key: Key, values: Mapping[str, Any], usual: Mapping[str, Any]
) -> tuple[str | None, Mapping[str, Any]]:
    """The name in conf/ with which a section leaves the least to say, and what is usual with it."""
    if not any(name.startswith(f"{key.name}.") for name in differing(values, usual)):
        return None, usual
    if key.group == "task":
        name = str(values[f"{key.name}.name"])
        return (
            (name, usual_values(stage, key.name, name)) if (CONF / "task" / f"{name}.yaml").is_file() else (None, usual)
        )
    choices: dict[str | None, Mapping[str, Any]] = {None: usual}
    for path in sorted((CONF / str(key.group)).glob("*.yaml")):
        content = (asdict(SizeConfig()) if key.group == "model" else {}) | read_plain_yaml(path)
        choices[path.stem] = {**usual, **{f"{key.name}.{name}": value for name, value in content.items()}}
    return min(choices.items(), key=lambda choice: len(differing(values, choice[1])))


def part_of(key: str, value: Any) -> str:
    last = key.rpartition(".")[2]
    text = in_short(value)
    return text if last in PLAIN else f"{SHORT.get(last, last)}={text}"


def in_short(value: Any) -> str:
    """1e-3 for 0.001, and of a path or URI the part that names it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        digits, _, exponent = f"{value:.5e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}" if 0 < abs(value) < 0.01 else f"{value:.6g}"
    return name_of_place(str(value))


def name_of_place(text: str) -> str:
    """poems of prepared/full/poems.jsonl.gz, mine of outputs/mine/model, m-a98040c7 of models:/m-a98040c7…"""
    if "/" not in text:
        return text
    path = Path(text)
    last = path.parent.name if path.name in ("model", "checkpoints") else path.name
    return re.sub(r"([0-9a-f]{8})[0-9a-f]{24}", r"\1", last.partition(".")[0] if path.suffix else last)


def is_said(config: StageConfig, key: str, value: Any) -> bool:
    return effect_of(type(config))(key) in (Effect.RESULT, Effect.CONTENT) and not (
        any(part in NOT_SAID for part in key.split("."))
        or isinstance(value, list | dict)
        or len(str(value).splitlines()) > 1
        or value == MISSING
        or (value is None and key.rpartition(".")[2] in PLAIN)
    )


def differing(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """What isn't as usual, of known keys; not what an earlier stage of main has made (<prepare>/quatrains).

    Known too is what stands in a mapping or a section that is usually empty: data.columns.NAME, space.KEY, model.KEY.
    """
    known = {
        key: value
        for key, value in values.items()
        if any(above in usual for above in accumulate(key.split("."), "{}.{}".format))
    }
    return {k: v for k, v in known.items() if v != (old := usual.get(k)) and not str(old).startswith("<")}


@cache
def usual_values(stage: str, *named: str) -> dict[str, Any]:
    """Dotted key → value where nothing is given but, in `named`, a section's key and name."""
    if stage not in STAGES:  # whoever else has a run
        return {}
    return dict(dotted_items(stage_defaults(stage, [(named[0], named[1])] if named else []), numbered=False))


def of_main(stage: str) -> dict[str, Any]:
    """What a stage of main has where nothing is given."""
    return {k.removeprefix(f"{stage}."): v for k, v in usual_values("main").items() if k.startswith(f"{stage}.")}
