"""Where a result comes from: configuration, code, versions."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import torch

from ..config.base import CommandConfig, StageConfig
from ..config.loader import dotted_items, to_dict, to_yaml
from ..system.hardware import describe_machine
from ..system.redaction import redact
from .tracked_run import TrackedRun

PACKAGES = ("torch", "pytorch-lightning", "mlflow", "datasets", "tokenizers", "safetensors", "omegaconf")
PARAM_PREFIX = "cfg."  # `mlflow run` logs the parameters it was given under their bare names; ours must not collide
PARAM_LIMIT = 6000  # characters; MLflow's store cuts or refuses more
PARAM_NAME = re.compile(r"[^\w. -]")  # what MLflow allows beside these ("/", ":") would make a name a path
PARAM_NAME_LIMIT = 250

CODE, ENVIRONMENT, SHA256 = ("git.",), ("version.", "machine."), ("sha256.",)
"""Beginnings of the tags that tell of these."""

RESUMED = "moyun.resumed"
"""Tag: how often the run went on."""


def log_provenance(run: TrackedRun, stage: str, config: StageConfig) -> None:
    """Where the run comes from. A run that goes on keeps its first parameters, which MLflow lets nobody change."""
    resolved = redact(to_dict(config))
    text = to_yaml(resolved)
    hashed = {"config.sha256": sha256(text.encode()).hexdigest()}
    environment = {f"version.{name}": value for name, value in versions().items()} | machine_state()
    run.set_tags({"stage": stage, **git_state(), **environment})
    if run.resumed:
        run.set_tags({RESUMED: str(run.resumed), **hashed})
        run.log_text(text, f"config.resumed-{run.resumed}.yaml")
        return
    run.log_params({param_name(key): str(value)[:PARAM_LIMIT] for key, value in dotted_items(resolved)})
    run.log_text(text, "config.yaml")
    run.set_tags(hashed)


def param_name(key: str) -> str:
    """A user's column name may hold what MLflow refuses in a parameter's name; config.yaml has it as it is."""
    return (PARAM_PREFIX + PARAM_NAME.sub("_", key))[:PARAM_NAME_LIMIT]


def git_state() -> dict[str, str]:
    """{"git.commit": …, "git.dirty": "true" or "false"} of this code; empty outside a checkout."""
    root = Path(__file__).parents[2]
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"git.commit": commit.strip(), "git.dirty": str(bool(status.strip())).lower()}


def machine_state() -> dict[str, str]:
    """{"machine.CPU": …}: what numbers may depend on beside code and versions; nothing that names the machine."""
    return {f"machine.{name}": value for name, value in describe_machine(torch.get_num_threads()).items()}


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def provenance(config: CommandConfig, **facts: Any) -> dict[str, Any]:
    """What run.yaml in a model folder says: the run, the code, the versions, and what the stage adds."""
    run = mlflow.active_run()
    return {
        "run_id": run.info.run_id if run else None,
        "config": redact(to_dict(config)),
        **git_state(),
        "versions": versions(),
        "machine": describe_machine(torch.get_num_threads()),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **redact(facts),
    }
