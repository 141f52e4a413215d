"""A stored model's folder: in the store itself where that is a folder here, else downloaded, once for each model."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from ...system.cache import CacheError, cache_folder, cached
from ...system.redaction import first_line
from .known_models import MODEL_ID, logged_model

VERSION = re.compile(r"models:/([^/@]+)/(\d+)/?")
ALIAS = re.compile(r"models:/([^/@]+)@([^/@]+)/?")

logger = logging.getLogger("moyun.tracking")


def fetch_model(uri: str) -> Path:
    """The folder, to be read only. ValueError where it is no model of moyun's, MlflowException where there is none."""
    model = model_behind(uri)
    if model is None or is_here(str(model.artifact_location)):
        return folder_in(Path(mlflow.artifacts.download_artifacts(uri)), uri)
    try:
        return cached(cache_folder(None), "model", {"model": model.model_id}, lambda entry: download(model, uri, entry))
    except CacheError as error:
        logger.warning("%s is downloaded for this process alone: %s", uri, first_line(error))
        return folder_in(Path(mlflow.artifacts.download_artifacts(uri)), uri)


def model_behind(uri: str) -> LoggedModel | None:
    """What a registered version, or an id, stands for; None of runs:/ and of versions from before there were ids.

    ValueError where the version is there and what it was made of isn't: `mlflow gc` doesn't look at versions.
    """
    client = MlflowClient()
    source: str | None = uri
    if match := VERSION.fullmatch(uri):
        source = client.get_model_version(*match.groups()).source
    elif match := ALIAS.fullmatch(uri):
        source = client.get_model_version_by_alias(*match.groups()).source
    found = MODEL_ID.fullmatch(str(source))
    model = logged_model(client, found[1]) if found else None
    if found and model is None and source != uri:
        raise ValueError(
            f"{uri}: the store has this version and no longer its model ({source}): it was deleted, perhaps by "
            "`mlflow gc` with its run. Register a copy: python -m pipelines.register model=FOLDER"
        )
    return model


def is_here(location: str) -> bool:
    """Whether files at such an address needn't be downloaded."""
    return urlsplit(location).scheme in ("", "file")


def download(model: LoggedModel, uri: str, entry: Path) -> None:
    """The files of a model's folder, without what MLflow has around it."""
    whole = entry / "download"
    whole.mkdir()
    place = mlflow.artifacts.download_artifacts(f"models:/{model.model_id}", dst_path=str(whole))
    for path in folder_in(Path(place), uri).iterdir():
        path.rename(entry / path.name)
    shutil.rmtree(whole)


def folder_in(place: Path, uri: str) -> Path:
    found = sorted(place.glob("artifacts/*/model.yaml"))
    if not found:
        raise ValueError(f"{uri} holds no moyun model folder (artifacts/*/model.yaml) under {place}")
    return found[0].parent
