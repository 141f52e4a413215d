"""Where a result comes from: configuration, code, versions and machine, as files of a run and in a model's run.yaml."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

from ..config.assignments import dotted_items
from ..config.base import CommandConfig, StageConfig
from ..config.effects.key_effects import Effect, effect_of
from ..config.loader import to_yaml
from ..system.hardware import describe_machine
from ..system.redaction import redact
from .tracked_run import TrackedRun

PACKAGES = ("torch", "pytorch-lightning", "mlflow", "datasets", "tokenizers", "safetensors", "omegaconf")
PARAM_PREFIX = "cfg."  # `mlflow run` logs the parameters it was given under their bare names; ours must not collide
PARAM_LIMIT = 6000  # characters; MLflow's store cuts or refuses more
PARAM_NAME = re.compile(r"[^\w. -]")  # what MLflow allows beside these ("/", ":") would make a name a path
PARAM_NAME_LIMIT = 250

CODE, ENVIRONMENT, SHA256 = ("git.",), ("version.", "machine."), ("sha256.",)
"""Prefixes of what is recorded of code, environment and fingerprints; these alone are tags, all were in older runs."""

ENVIRONMENT_FILE = "environment.json"
"""Artifact with `git_state` and `environment`."""

RESUMED = "moyun.resumed"
"""Tag: how often the run went on."""

REUSED_FROM = "moyun.reused_from"
"""Tag: the earlier run that has done the same, and has its metrics."""


def log_provenance(run: TrackedRun, stage: str, config: StageConfig) -> None:
    """Logs a run's origin. A run that goes on keeps its first parameters, which MLflow lets nobody change.

    Versions and machine are the same in most runs: as tags or parameters they would stand in the way of what differs.
    """
    resolved = redact(asdict(config))
    text, code = to_yaml(resolved), git_state()
    commit = {MLFLOW_GIT_COMMIT: code["git.commit"]} if code else {}
    run.set_tags({"stage": stage, **commit} | ({RESUMED: str(run.resumed)} if run.resumed else {}))
    if not run.resumed:
        effect = effect_of(type(config))  # what changes no result is in config.yaml alone: it would head comparisons
        said = [(key, value) for key, value in dotted_items(resolved) if effect(key) is not Effect.NOTHING]
        run.log_params({param_name(key): str(value)[:PARAM_LIMIT] for key, value in said})
    run.log_text(text, file_of("config.yaml", run.resumed))
    facts = {**code, **environment(), "config.sha256": sha256(text.encode()).hexdigest()}
    run.log_dict(facts, file_of(ENVIRONMENT_FILE, run.resumed))


def file_of(name: str, resumed: int) -> str:
    """What an artifact is called in a run that went on so often."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.resumed-{resumed}.{suffix}" if resumed else name


def provenance(config: CommandConfig, **facts: Any) -> dict[str, Any]:
    """The content of a model folder's run.yaml: the run, its origin, and what the stage adds."""
    run = mlflow.active_run()
    return {
        "run_id": run.info.run_id if run else None,
        "config": redact(asdict(config)),
        **git_state(),
        **environment(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **redact(facts),
    }


def param_name(key: str) -> str:
    """A name that MLflow takes: a user's column name may hold what it refuses, and only config.yaml has it as it is."""
    return (PARAM_PREFIX + PARAM_NAME.sub("_", key))[:PARAM_NAME_LIMIT]


def git_state() -> dict[str, str]:
    """{"git.commit": …, "git.dirty": "true" or "false"} of this code; empty outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parents[2])]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"git.commit": commit.strip(), "git.dirty": str(bool(status.strip())).lower()}


def environment() -> dict[str, dict[str, str]]:
    """What numbers may depend on beside code: versions and the machine's kind, but nothing that names the machine."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {"versions": versions, "machine": describe_machine(torch.get_num_threads())}


def flat_environment(facts: Mapping[str, Any]) -> dict[str, str]:
    """{"version.torch": …, "machine.CPU": …} of `environment`'s facts, or of what a run.yaml has of them."""
    return {
        f"{prefix}{name}": str(value)
        for prefix, section in zip(ENVIRONMENT, ("versions", "machine"), strict=True)
        for name, value in (facts.get(section) or {}).items()
    }
