"""Model folders ↔ MLflow's model registry: logging without pickle, registering, and who is champion."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ..checkpoint.loading import verified_hash
from ..config.base import is_registered, model_folder
from ..inference.signature import MODEL_CONFIG, SIGNATURE
from ..system.redaction import redact_text
from ..tokenizer.tokenizer import load_tokenizer
from .outbox.store import is_there, patient, why
from .outbox.store_check import require_store
from .reuse.imported_code import MODULES, code_behind
from .run_lifecycle import inside
from .summary.version_notes import describe_version

WHERE_MODELS_ARE = "`make demo` registers models:/moyun@champion; a model folder's path works here too"
PYFUNC = MODULES / "inference" / "pyfunc.py"
SERVING_REQUIREMENTS = ("mlflow", "torch", "tokenizers", "safetensors", "omegaconf", "pyyaml", "numpy", "pandas")
"""What the code in code_behind(PYFUNC) imports; with a tokenizer of jieba's, jieba too."""
EXAMPLE = (pd.DataFrame({"src_txt": ["白日依山尽，"]}), {"max_new_tokens": 16, "temperature": 0.0})

RECORD, WEIGHTS = "moyun.record", "sha256.weights"
"""Tags of a logged model: which record of a run's local log it comes from, and the hash of its weights."""

COMPLETE = "moyun.complete"
"""Tag of a registered version: whether the command that made it came to its end."""


def log_model_once(folder: Path, run: Run, record: str) -> str:
    """`log_model` to a run, which then has this model and no other.

    A call whose answer was lost can be made again; and a run that was killed before it could tell of its model makes it
    anew, with another `record`.
    """
    client = MlflowClient()
    digest = verified_hash(folder)
    made = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    ours = [model for model in made if RECORD in model.tags]
    ready = [model for model in ours if model.status == LoggedModelStatus.READY]
    same = [m for m in ready if m.tags[RECORD] == record or m.tags.get(WEIGHTS) == digest]
    uri = str(same[0].model_uri) if same else None
    if uri is None:
        with inside(run):
            uri = log_model(folder, {RECORD: record, WEIGHTS: digest})
    for model in ours:
        if str(model.model_uri) != uri:
            client.delete_logged_model(model.model_id)
    return uri


def log_model(folder: Path, tags: dict[str, str] | None = None) -> str:
    """Logs a model folder to the active run as a pyfunc that serves itself; returns its models:/ URI."""
    requirements = (*SERVING_REQUIREMENTS, *(["jieba"] if load_tokenizer(folder).kind == "jieba_bpe" else []))
    with patient(), TemporaryDirectory(prefix="moyun-code-") as code:
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(PYFUNC),
            artifacts={"model": str(folder)},
            code_paths=[str(serving_code(Path(code)))],
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in requirements],
            signature=SIGNATURE,
            model_config=dict(MODEL_CONFIG),
            input_example=EXAMPLE,
            tags=tags,
        )
    return str(info.model_uri)


def serving_code(folder: Path) -> Path:
    """Copies what a served model imports, and nothing else of moyun, to folder/modules."""
    for file in code_behind(PYFUNC):
        target = folder / file.relative_to(MODULES.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return folder / MODULES.name


def register_version(model_uri: str, name: str, folder: Path, tags: dict[str, str]) -> str:
    """Makes a new version of `name` and returns its number; until `complete_version` it counts as begun.

    A version of the same weights that a killed command has begun is taken instead of a second one.
    """
    told, tags = tags, tags | {WEIGHTS: verified_hash(folder), COMPLETE: "false"}
    client = MlflowClient()
    for begun in client.search_model_versions(f"name = '{name}'"):
        if {begun.tags.get(key) for key in (WEIGHTS, COMPLETE)} == {tags[WEIGHTS], "false"}:
            for key, value in tags.items():
                client.set_model_version_tag(name, begun.version, key, value)
            return str(begun.version)
    number = str(mlflow.register_model(model_uri, name, tags=tags).version)
    describe_version(name, number, folder, told)
    return number


def complete_version(name: str, number: str, alias: str | None) -> None:
    """Ends what register_version has begun: the alias moves to the version, if there is to be one."""
    client = MlflowClient()
    if alias:
        client.set_registered_model_alias(name, alias, number)
    client.set_model_version_tag(name, number, COMPLETE, "true")


def version_with_alias(name: str, alias: str) -> ModelVersion | None:
    """The version that carries the alias, None where there is none."""
    try:
        return MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def resolve_model(uri: str) -> Path:
    """The model folder that a path or a models:/ URI names, to be read only: it may be the store's own copy.

    Args:
        uri: A path, of any format that checkpoint.loading.open_model reads, or models:/NAME@ALIAS,
            models:/NAME/VERSION, models:/MODEL_ID or runs:/RUN_ID/PATH.

    Raises:
        ValueError: There is no such model or no tracking store, or what the URI names isn't moyun's.
    """
    if not is_registered(uri):
        return model_folder(uri)
    store = redact_text(mlflow.get_tracking_uri())
    if not any(map(is_there, (mlflow.get_tracking_uri(), mlflow.get_registry_uri()))):
        raise ValueError(f"{uri}: there is no tracking store {store}. {WHERE_MODELS_ARE}")
    if not mlflow.active_run():  # which has asked already
        require_store(mlflow.get_tracking_uri())
    try:
        with patient():
            downloaded = Path(mlflow.artifacts.download_artifacts(uri))
    except MlflowException as error:
        raise ValueError(f"{uri}: {why(error)} (tracking store: {store}). {WHERE_MODELS_ARE}") from None
    found = sorted(downloaded.glob("artifacts/*/model.yaml"))
    if not found:
        raise ValueError(f"{uri} holds no moyun model folder (artifacts/*/model.yaml) under {downloaded}")
    return found[0].parent
