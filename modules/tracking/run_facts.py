"""What a run was made from and what came of it, read from the tracking store or from what the run left in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from ..checkpoint.model_folder import read_provenance
from ..config.assignments import dotted_items
from ..config.base import is_registered, model_folder
from ..system.redaction import redact_text
from ..training.checkpoints.run_manifest import CHECKPOINTS, RunManifest, read_run_manifest
from .provenance import (
    CODE,
    ENVIRONMENT,
    ENVIRONMENT_FILE,
    PARAM_PREFIX,
    RESUMED,
    SHA256,
    file_of,
    flat_environment,
)
from .registry import resolve_model
from .run_lifecycle import metric_history

RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class RunFacts:
    name: str
    """As the user named the run."""
    run_id: str | None = None
    stage: str | None = None
    status: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key → value."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Split, tokenizer or init_from → fingerprint."""
    code: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each."""
    losses: Mapping[int, float] = field(default_factory=dict)
    """Step → training loss."""


def read_run(name: str) -> RunFacts:
    """The facts of a run that is given by its id, a models:/ URI, a model folder or a training stage's output folder.

    For a folder the tracking store is asked for the run that made it; where it doesn't know that run, the folder's own
    files tell. Raises ValueError where `name` is none of these, or there is no such run.
    """
    path = Path(name)
    if RUN_ID.fullmatch(name) and not path.exists():
        return facts_from_store(name, run_of(name, needed=True))
    if not is_registered(name) and not path.is_dir():
        raise ValueError(
            f"{name} is no run id (32 hexadecimal digits, as in `mlflow ui`), no models:/ URI and no folder"
        )
    folder = resolve_model(name) if is_registered(name) else model_folder(path)
    if facts := read_provenance(folder):
        run = run_of(str(facts.get("run_id")), needed=False)
        return facts_from_store(name, run) if run else facts_from_model(name, facts)
    if manifest := read_run_manifest(path / CHECKPOINTS):
        run = run_of(manifest.run_id, needed=False)
        return facts_from_store(name, run) if run else facts_from_manifest(name, manifest)
    raise ValueError(f"{name} tells of no run: a model folder has run.yaml, a run's output folder {CHECKPOINTS}/")


def run_of(run_id: str, needed: bool) -> Run | None:
    """The store's run of that id; where there is none, None or, if it is `needed`, a ValueError."""
    try:
        return MlflowClient().get_run(run_id)
    except MlflowException as error:
        if not needed:
            return None
        raise ValueError(
            f"{error.message} (tracking store: {redact_text(mlflow.get_tracking_uri())}); start compare where the runs "
            "were started, or name their store with tracking.tracking_uri"
        ) from error


def facts_from_store(name: str, run: Run | None) -> RunFacts:
    assert run
    tags = run.data.tags
    code, environment = surroundings_of(run)
    digests = {
        next((tag.value for tag in entry.tags if tag.key == "mlflow.data.context"), entry.dataset.name): entry.dataset
        for entry in (run.inputs.dataset_inputs if run.inputs else [])
    }
    return RunFacts(
        name,
        run.info.run_id,
        tags.get("stage"),
        run.info.status,
        config_of(run),
        shortened({context: rows.digest for context, rows in sorted(digests.items())} | starting(tags, SHA256)),
        code,
        environment | ({"times resumed": tags[RESUMED]} if RESUMED in tags else {}),
        run.data.metrics,
        dict(metric_history(run.info.run_id, ["train/loss"])["train/loss"]),
    )


def config_of(run: Run) -> dict[str, Any]:
    """Dotted key → value from config.yaml; of a run without that file from its parameters, as text."""
    try:
        text = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/config.yaml")
    except (MlflowException, OSError):
        given = starting(run.data.params, (PARAM_PREFIX,))
        return {key.removeprefix(PARAM_PREFIX): value for key, value in given.items()}
    return dict(dotted_items(yaml.safe_load(text)))


def surroundings_of(run: Run) -> tuple[dict[str, str], dict[str, str]]:
    """(code, environment) from environment.json, the last one of a run that went on; of an earlier version its tags."""
    tags = run.data.tags
    name = file_of(ENVIRONMENT_FILE, int(tags.get(RESUMED, 0)))
    try:
        facts = json.loads(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/{name}"))
    except (MlflowException, OSError, ValueError):
        return starting(tags, CODE), starting(tags, ENVIRONMENT)
    return starting(facts, CODE), flat_environment(facts)


def starting(tags: Mapping[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    return {key: str(value) for key, value in sorted(tags.items()) if key.startswith(prefixes)}


def shortened(fingerprints: Mapping[str, Any]) -> dict[str, str]:
    """Cut to the 32 characters that MLflow keeps of a data set's fingerprint."""
    return {name: str(value)[:32] for name, value in fingerprints.items() if value}


def facts_from_model(name: str, facts: dict[str, Any]) -> RunFacts:
    """From the run.yaml of a model folder."""
    parent = facts.get("parent") or {}
    known = {"sha256.tokenizer": facts.get("tokenizer"), "sha256.init_from": parent.get("weights_sha256")}
    learnt = {split: digest for split, digest in (facts.get("data") or {}).items() if split != "test"}
    return RunFacts(
        name,
        facts.get("run_id"),
        facts.get("stage"),
        config=dict(dotted_items(facts.get("config") or {})),
        data=shortened(learnt | known),
        code=starting(facts, CODE),
        environment=flat_environment(facts),
        metrics=facts.get("metrics") or {},
    )


def facts_from_manifest(name: str, manifest: RunManifest) -> RunFacts:
    """From the manifest beside a run's training checkpoints."""
    return RunFacts(
        name,
        manifest.run_id,
        manifest.stage,
        config=dict(dotted_items(manifest.config)),
        data=shortened(manifest.data | manifest.fingerprints),
        metrics=manifest.metrics or {},
    )
