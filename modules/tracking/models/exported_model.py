"""A model folder as a LoggedModel of MLflow: without pickle, with the code that serves it, of the run that made it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.tracking.fluent import get_active_model_id
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from ...checkpoint.loading import open_tokenizer, verified_hash
from ...checkpoint.model_folder import read_provenance
from ...inference.signature import MODEL_CONFIG, SIGNATURE
from ...inference.verse.rhymes import TABLE
from ...system.redaction import hide_values
from ...tokenizer.tokenizer import load_tokenizer
from ..outbox.logged_models import add_output, add_validation, models_of
from ..outbox.store import is_there, patient
from ..reuse.imported_code import MODULES, code_behind, imported_packages
from ..run_lifecycle import outside_of_runs

PYFUNC = MODULES / "inference" / "pyfunc.py"
DISTRIBUTIONS = {"yaml": "pyyaml"}
"""The package that is imported → what it is installed as, where that is called otherwise."""
EXAMPLE = (pd.DataFrame({"src_txt": ["白日依山尽，"]}), {"max_new_tokens": 16, "temperature": 0.0})

RECORD = "moyun.record"
"""Tag of a logged model: which record of a run's local log it comes from."""

WEIGHTS, TOKENIZER = "sha256.weights", "sha256.tokenizer"
"""Tags of a logged model and of a registered version: by these two it is known that a folder holds the same model."""


def log_model_once(folder: Path, run: Run, record: str, fields: Mapping[str, Any]) -> str:
    """`log_model` to a run, which then has this model and no other, with the validation metrics of its step.

    A call whose answer was lost can be made again; and a run that was killed before it could tell of its model makes it
    anew, with another `record`. One that a version in the registry is made of stays: the version has no other copy.

    fields: step; dataset, (name, digest) of the validation rows. Logs of an older moyun have no step.
    """
    client = MlflowClient()
    identity = identity_of(folder)
    ours = [model for model in models_of(client, run) if RECORD in model.tags]
    ready = [model for model in ours if model.status == LoggedModelStatus.READY]
    same = [m for m in ready if m.tags[RECORD] == record or holds(m.tags, identity)]
    model = same[0] if same else new_model(folder, run, {RECORD: record} | identity)
    for other in ours:
        if other.model_id != model.model_id and not has_version(client, other):
            client.delete_logged_model(other.model_id)
    if step := fields.get("step"):
        add_validation(client, run, model, step, fields["dataset"])
    add_output(client, run, model, step or 0)
    return str(model.model_uri)


def has_version(client: MlflowClient, model: LoggedModel) -> bool:
    if not is_there(mlflow.get_registry_uri()):  # asking would make it
        return False
    return bool(client.search_model_versions(f"source_path = '{model.model_uri}'", max_results=1))


def log_model(folder: Path, run_id: str | None = None) -> str:
    """Logs a model folder as a model of a run, by default the active one; returns its models:/ URI."""
    client = MlflowClient()
    active = mlflow.active_run()
    run = client.get_run(run_id or (active.info.run_id if active else ""))
    model = new_model(folder, run, identity_of(folder))
    add_output(client, run, model, 0)
    return str(model.model_uri)


def identity_of(folder: Path) -> dict[str, str]:
    """The tags by which a folder's model is known again, wherever the folder lies."""
    return {WEIGHTS: verified_hash(folder), TOKENIZER: open_tokenizer(folder).fingerprint}


def description_of(folder: Path) -> str:
    """What a model folder's run.yaml tells of it, in Markdown; empty where there is none."""
    facts = read_provenance(folder)
    if not (stage := facts.get("stage")):
        return ""
    named = (facts.get(name) for name in ("parent", "rows", "sources", "metrics"))
    parent, rows, sources, metrics = (found if isinstance(found, dict) else {} for found in named)  # a user may edit it
    start = f"`{parent['init_from']}`" if parent.get("init_from") else "random weights"
    lines = [f"Made by **{stage}** from {start}."]
    lines += [f"- {split}: {count} rows of `{sources.get(split, '?')}`" for split, count in rows.items()]
    lines += [f"- {name}: {value:.4g}" for name, value in metrics.items() if isinstance(value, float)]
    return hide_values("\n".join([lines[0], "", *lines[1:]]))


def holds(tags: Mapping[str, str], identity: Mapping[str, str]) -> bool:
    return all(tags.get(name) == value for name, value in identity.items())


def new_model(folder: Path, run: Run, tags: dict[str, str]) -> LoggedModel:
    """As a pyfunc that serves itself.

    MLflow gets no run to log it to, as it would link all metrics of step 0 to the model, the machine's among them.
    """
    described = {MLFLOW_RUN_NOTE: text} if (text := description_of(folder)) else {}  # a model's is called the same
    model = MlflowClient().create_logged_model(
        run.info.experiment_id,
        name="model",
        source_run_id=run.info.run_id,
        tags=tags | described,
        params=run.data.params,
    )
    before = get_active_model_id()
    with patient(), outside_of_runs(), TemporaryDirectory(prefix="moyun-code-") as code:
        mlflow.pyfunc.log_model(
            name="model",
            model_id=model.model_id,
            python_model=str(PYFUNC),
            artifacts={"model": str(folder)},
            code_paths=[str(part) for part in serving_code(Path(code)).iterdir()],
            pip_requirements=requirements_of(folder),
            signature=SIGNATURE,
            model_config=dict(MODEL_CONFIG),
            input_example=EXAMPLE,
        )
    if get_active_model_id() != before:
        mlflow.clear_active_model()  # MLflow tried the model, and would link to it whatever this thread logs next
    return model


def requirements_of(folder: Path) -> list[str]:
    """What must be installed where a model is served: all that the code imports which it carries.

    jieba is imported only by tokenizers that cut words with it, llguidance by requests for JSON or by an expression,
    which are refused where it isn't installed: it is named where it is installed here.
    """
    needed = imported_packages(code_behind(PYFUNC))
    if find_spec("llguidance") is None:
        needed -= {"llguidance"}
    if load_tokenizer(folder).kind != "jieba_bpe":
        needed -= {"jieba"}
    names = sorted(DISTRIBUTIONS.get(name, name) for name in needed)
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def serving_code(folder: Path) -> Path:
    """Copies what a served model imports, and nothing else of moyun but the table of rhymes; returns the folder."""
    for file in [*code_behind(PYFUNC), TABLE]:
        target = folder / file.relative_to(MODULES.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return folder
