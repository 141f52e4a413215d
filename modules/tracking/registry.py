"""MLflow's model registry: registering a model folder, who is champion, and the folder that a URI names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ..config.base import is_registered, model_folder
from ..system.redaction import redact_text
from .models.downloaded_models import fetch_model
from .models.exported_model import holds, identity_of, log_model
from .models.known_models import known_model, run_behind, weights_elsewhere
from .outbox.logged_models import CHECKPOINT
from .outbox.store import is_there, patient, why
from .outbox.store_check import require_store
from .summary.version_notes import describe_version

WHERE_MODELS_ARE = "`make demo` registers models:/moyun@champion; a model folder's path works here too"

COMPLETE = "moyun.complete"
"""Tag of a registered version: whether the command that made it came to its end."""


def version_of(name: str, place: str, folder: Path) -> str | None:
    """Number of the version of `name` that has a folder's model: the same weights and tokenizer, or LoggedModel.

    Of several it is the one with an alias, else the first; also one that a killed command has begun. place: as the user
    named the folder.
    """
    client = MlflowClient()
    identity, known = identity_of(folder), known_model(place, folder)
    found = []
    for version in client.search_model_versions(f"name = '{name}'"):
        same = holds(version.tags, identity) or (known and version.source == known.model_uri)
        if same and version.status == "READY":
            found.append(client.get_model_version(name, version.version))  # a search tells of no aliases
    first = min(found, key=lambda version: (not version.aliases, int(version.version)), default=None)
    return str(first.version) if first else None


def register_version(
    name: str, place: str, folder: Path, run_id: str, tags: Mapping[str, str], before: str | None = None
) -> str:
    """Makes a version of `name`, unless `before` has the model; returns its number. `complete_version` ends it.

    It comes from the run that trained the model, where that is known here, else from `run_id`. What the store has of
    the model already isn't copied once more.
    """
    told, tags = tags, {**tags, **identity_of(folder), COMPLETE: "false"}
    if before:
        for key, value in tags.items():
            MlflowClient().set_model_version_tag(name, before, key, value)
        if told:
            describe_version(name, before, folder, told)
        return before
    known = known_model(place, folder)
    if known and CHECKPOINT not in known.tags:
        uri = str(known.model_uri)
    else:
        trained = run_behind(folder)
        uri = log_model(folder, trained.info.run_id if trained else run_id)
    number = str(mlflow.register_model(uri, name, tags=tags).version)
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
    if not is_there(mlflow.get_registry_uri()):  # asking would make it
        return None
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
            models:/NAME/VERSION, models:/MODEL_ID or runs:/RUN_ID/PATH. A checkpoint's names the folder beside its run.

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
        if elsewhere := weights_elsewhere(uri):
            return elsewhere
        with patient():
            return fetch_model(uri)
    except MlflowException as error:
        raise ValueError(f"{uri}: {why(error)} (tracking store: {store}). {WHERE_MODELS_ARE}") from None
