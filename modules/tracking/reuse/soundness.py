"""Whether what an earlier stage made is still there, whole, and what it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.utils.uri import is_local_uri

from ..outbox.spool import unsent
from ..outbox.store import why
from ..registry import COMPLETE, version_with_alias
from .contents import content_digest, content_of, damage_of

Facts = Mapping[str, Any]
"""What a stage made, as main's run keeps it (see stage_cache.py)."""


def what_is_wrong(facts: Facts) -> str | None:
    """Why what a stage made can't be used again, None where it can."""
    try:
        run = MlflowClient().get_run(facts["run_id"])
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            return f"run {facts['run_id']} was deleted"
        if run.info.status != "FINISHED":
            return f"run {facts['run_id']} isn't finished"
        checks = wrong_files, wrong_model, wrong_artifacts, wrong_version
        return next(filter(None, (check(facts) for check in checks)), None)
    except MlflowException as error:
        return why(error)
    except (OSError, ValueError, KeyError, TypeError) as error:  # a folder or record that can't be read
        return f"{type(error).__name__}: {error}"


def wrong_files(facts: Facts) -> str | None:
    return damage_of(Path(facts["folder"]), facts["files"]) if "folder" in facts else None


def wrong_model(facts: Facts) -> str | None:
    """Of a training: the copy in the store, whose files are looked through where they are on this machine."""
    if scored := facts.get("scored"):  # of an evaluation
        MlflowClient().get_logged_model(scored.removeprefix("models:/"))
    if "model_uri" not in facts:
        return None
    if not (uri := facts["model_uri"]):
        return "its model couldn't be sent to the store"
    model = MlflowClient().get_logged_model(uri.removeprefix("models:/"))
    if model.status != LoggedModelStatus.READY:
        return f"{uri} isn't whole in the store"
    if is_local_uri(model.artifact_location) and content_of(uri) != content_digest(facts["files"]):
        return f"{uri} has other content in the store"
    return None


def only_waits(facts: Facts, logs: Path) -> bool:
    """Whether a training is whole, but its local log still holds what the store is to know of it."""
    return "costs" in facts and not facts.get("model_uri") and unsent(logs / facts["run_id"]) and not wrong_files(facts)


def artifact_sizes(run_id: str) -> dict[str, int]:
    """Path → bytes of a run's artifacts."""
    client, found, folders = MlflowClient(), dict[str, int](), [""]
    while folders:
        for entry in client.list_artifacts(run_id, folders.pop() or None):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                found[entry.path] = int(entry.file_size or 0)
    return found


def wrong_artifacts(facts: Facts) -> str | None:
    """Of an evaluation: its page, tables and pictures."""
    sizes = facts.get("artifacts")
    now = artifact_sizes(facts["run_id"]) if sizes else {}
    for path, size in (sizes or {}).items():
        if now.get(path) != size:
            return f"its artifact {path} {'has another length' if path in now else 'is gone'}"
    return None


def wrong_version(facts: Facts) -> str | None:
    """Of a registration: the version, its files, and who holds the alias."""
    if not (number := facts.get("version")):
        return None
    name, alias = facts["model_name"], facts["alias"]
    version = MlflowClient().get_model_version(name, number)
    if version.tags.get(COMPLETE) != "true":
        return f"version {number} isn't complete"
    uri = f"models:/{name}/{number}"
    local = is_local_uri(MlflowClient().get_model_version_download_uri(name, number))
    if local and content_of(uri) != facts["content"]:
        return f"version {number} has other content in the store"
    if (holder := holder_of(name, alias)) != facts["holder"]:
        return f"{alias} was with version {facts['holder']}, and is with {holder}"
    return None


def holder_of(name: str, alias: str) -> str | None:
    """The number of the version that carries the alias."""
    found = version_with_alias(name, alias)
    return str(found.version) if found else None
