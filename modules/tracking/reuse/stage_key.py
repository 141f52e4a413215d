"""All that decides what a stage makes, as one key: configuration, contents of what it reads, code, versions."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ...config.assignments import dotted_items
from ...config.base import MODEL, StageConfig
from ...config.data import CLONES, TRACES, PrepareConfig
from ...config.effects.key_effects import Effect, effect_of
from ...config.preferences.judging import JUDGED
from ...config.schema import paths_in
from ...config.training import TrainingConfig
from ...data.corpora.folders import SAMPLE
from ...data.corpora.prose.clone_sets import HELD_OUT
from ...system.checksums import sha256_of
from ...system.hardware import default_device
from ...training.planning.recipe import POETRY
from .contents import content_of
from .imported_code import MODULES, code_digest

ROWS = ("datasets", "numpy", "pyarrow")
NETWORK = (*ROWS, "torch", "tokenizers", "jieba")
SCORES = (*NETWORK, "sacrebleu", "scipy", "llguidance")

LIBRARIES = {
    "prepare": (*ROWS, "opencc", "scipy"),
    "pretrain": (*NETWORK, "pytorch-lightning"),
    "finetune": (*NETWORK, "pytorch-lightning"),
    "prefer": (*NETWORK, "pytorch-lightning"),
    "evaluate": SCORES,
    "register": SCORES,
}
"""Those that what a stage makes depends on; not those that only keep or show it, as mlflow."""


def program_of(stage: str, config: StageConfig) -> str:
    """SHA-256 over the code that a stage runs and the versions of LIBRARIES: what may make other things of the same.

    The folder that a stage has written keeps it.
    """
    by_texts = isinstance(config, TrainingConfig) and config.train.text_metric
    versions = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in {*LIBRARIES[stage], *(SCORES if by_texts else ())}:
        with suppress(PackageNotFoundError):  # jieba and llguidance are extras
            versions[name] = version(name)
    code = code_digest(MODULES.parent / "pipelines" / f"{stage}.py")
    return hashlib.sha256(json.dumps([code, versions], sort_keys=True).encode()).hexdigest()


def stage_key(stage: str, config: StageConfig, known: Mapping[str, str]) -> tuple[str | None, str]:
    """(the key, "") of a stage; (None, why) where a second time may come out otherwise, and so has to be done.

    known: Place → digest of what is there, of what needn't be looked for.
    """
    values, kind = asdict(config), type(config)
    if isinstance(config, PrepareConfig) and config.source != JUDGED:  # what else it could be told goes with that alone
        kind, values = PrepareConfig, {entry.name: values[entry.name] for entry in fields(PrepareConfig)}
    train = values.get("train", {})
    if train.get("allow_changed") or train.get("resume_from") not in (None, "auto"):
        return None, "it goes on from another training"
    if stage == "prepare" and values["source"] == TRACES:
        return None, "there may be other traces by now"
    data = values.get("data", {})
    if data and not data["path"] and not data["test_path"] and not data["mix"]:
        return None, "no rows are named"
    effect = effect_of(kind)
    paths = {key: field.metadata == MODEL for key, _, field in paths_in(config)}
    counted: dict[str, Any] = {}
    named = isinstance(config, PrepareConfig) and config.is_public and config.source != "sample"  # it is no path
    for key, value in dotted_items(values):
        if effect(key) is Effect.NOTHING:
            continue
        if key in paths and not (key == "source" and named):
            place = str(SAMPLE) if key == "source" and value == "sample" else value
            value = known.get(place) or content_of(place, paths[key])
            if value is None:
                return None, f"{key}={place} isn't on this machine, and may be otherwise by now"
        counted[key] = value
    if "output_dir" in values:
        counted["output_dir"] = os.path.abspath(values["output_dir"] or ".")
    if isinstance(config, PrepareConfig) and config.source in CLONES:
        counted["held_out"] = sha256_of(HELD_OUT)
    if isinstance(config, TrainingConfig):
        counted["recipe.poetry"] = POETRY  # of conf/, and what isn't given may come from it
    program = program_of(stage, config)
    whole = {"stage": stage, "config": counted, "program": program, "device": default_device().type}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest(), ""
