"""What a run was made from and what came of it, read back from the tracking store, or from what it left in a folder."""

from __future__ import annotations

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

from ..checkpoint.loading import is_registered, model_folder
from ..checkpoint.model_folder import read_provenance
from ..config.loader import dotted_items
from ..system.redaction import redact_text
from ..training.run_manifest import CHECKPOINTS, RunManifest, read_run_manifest
from .provenance import CODE, ENVIRONMENT, PARAM_PREFIX, RESUMED, SHA256
from .registry import resolve_model
from .stage_run import metric_history

RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class RunFacts:
    name: str
    """As it was asked for."""
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
    """A run id, a models:/ URI, a model folder or a training stage's output folder.

    Of a folder the store is asked for the run that made it; a folder from elsewhere tells what stands in it. ValueError
    for what is none of these.
    """
    path = Path(name)
    if RUN_ID.fullmatch(name) and not path.exists():
        return of_store(name, run_of(name, needed=True))
    if not is_registered(name) and not path.is_dir():
        raise ValueError(
            f"{name} is no run id (32 hexadecimal digits, as `mlflow ui` shows them), no models:/ URI and no folder"
        )
    folder = resolve_model(name) if is_registered(name) else model_folder(path)
    if facts := read_provenance(folder):
        run = run_of(str(facts.get("run_id")), needed=False)
        return of_store(name, run) if run else of_model(name, facts)
    if origin := read_run_manifest(path / CHECKPOINTS):
        run = run_of(origin.run_id, needed=False)
        return of_store(name, run) if run else of_origin(name, origin)
    raise ValueError(f"{name} tells of no run: a model folder has run.yaml, a run's output folder {CHECKPOINTS}/")


def run_of(run_id: str, needed: bool) -> Run | None:
    """None where the store doesn't know it and it isn't needed."""
    try:
        return MlflowClient().get_run(run_id)
    except MlflowException as error:
        if not needed:
            return None
        raise ValueError(
            f"{error.message} (tracking store: {redact_text(mlflow.get_tracking_uri())}); start compare where the runs "
            "were started, or name their store with tracking.tracking_uri"
        ) from error


def of_store(name: str, run: Run | None) -> RunFacts:
    assert run
    tags = run.data.tags
    inputs = {
        next((tag.value for tag in entry.tags if tag.key == "mlflow.data.context"), entry.dataset.name): entry
        for entry in (run.inputs.dataset_inputs if run.inputs else [])
    }
    losses = metric_history(run.info.run_id, ["train/loss"])["train/loss"]
    return RunFacts(
        name,
        run.info.run_id,
        tags.get("stage"),
        run.info.status,
        config_of(run),
        shortened({context: entry.dataset.digest for context, entry in sorted(inputs.items())} | part(tags, SHA256)),
        part(tags, CODE),
        part(tags, ENVIRONMENT) | ({"times resumed": tags[RESUMED]} if RESUMED in tags else {}),
        run.data.metrics,
        dict(losses),
    )


def shortened(fingerprints: Mapping[str, Any]) -> dict[str, str]:
    """To the length that MLflow keeps of a data set's."""
    return {name: str(value)[:32] for name, value in fingerprints.items() if value}


def config_of(run: Run) -> dict[str, Any]:
    """As it was resolved; of a run without the file its parameters, as text."""
    try:
        text = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/config.yaml")
    except (MlflowException, OSError):
        return {
            key.removeprefix(PARAM_PREFIX): value
            for key, value in run.data.params.items()
            if key.startswith(PARAM_PREFIX)
        }
    return dict(dotted_items(yaml.safe_load(text)))


def part(tags: Mapping[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    return {key: value for key, value in sorted(tags.items()) if key.startswith(prefixes)}


def of_model(name: str, facts: dict[str, Any]) -> RunFacts:
    """What run.yaml in a model folder says."""
    parent = facts.get("parent") or {}
    known = {"sha256.tokenizer": facts.get("tokenizer"), "sha256.init_from": parent.get("weights_sha256")}
    return RunFacts(
        name,
        facts.get("run_id"),
        facts.get("stage"),
        config=dict(dotted_items(facts.get("config") or {})),
        data=shortened((facts.get("data") or {}) | known),
        code={key: str(value) for key, value in facts.items() if key.startswith(CODE)},
        environment={
            f"{prefix}.{key}": str(value)
            for prefix, part in (("version", "versions"), ("machine", "machine"))
            for key, value in (facts.get(part) or {}).items()
        },
        metrics=facts.get("metrics") or {},
    )


def of_origin(name: str, origin: RunManifest) -> RunFacts:
    return RunFacts(
        name,
        origin.run_id,
        origin.stage,
        config=dict(dotted_items(origin.config)),
        data=shortened(origin.data | origin.fingerprints),
        metrics=origin.metrics or {},
    )
