"""Finds what an earlier `main` made of the same, and keeps what this one makes.

The run of `main` carries the keys of the stages that it did itself in one tag, and an artifact stages/STAGE.json with
what came of each: run_id, time, and by stage a folder with its files' checksums, a model in the store, scores, a
version.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlflow
from filelock import Timeout
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from ...config.base import StageConfig
from ...config.data import PrepareConfig
from ...data.corpora.manifest import read_manifest
from ...system.cache import cache_folder
from ...system.process_locks import file_lock, is_locked
from ...training.checkpoints.run_manifest import CHECKPOINTS, LOCK, read_run_manifest
from ..models.known_models import sent_model
from ..outbox.store import is_there
from ..summary.costs import costs_of
from ..tracked_run import TrackedRun
from .soundness import what_is_wrong, wrong_files
from .stage_key import program_of

logger = logging.getLogger("moyun.reuse")

KEYS = "moyun.stage_keys"
"""Tag: STAGE=KEY STAGE=KEY …"""

MOST = 20
"""Earlier runs that are looked at, the newest first."""


@dataclass(frozen=True)
class Found:
    """What there is of a stage from earlier runs."""

    facts: dict[str, Any] | None = None
    """Of one that is sound."""
    wrong: str | None = None
    """Why the newest can't be used."""
    damaged: dict[str, Any] | None = None
    """The facts of that one."""


def find(stage: str, key: str) -> Found:
    """What was made of the same before. An error of the store means that nothing is found."""
    found = Found()
    with contextlib.suppress(MlflowException):
        for run in runs_with(stage, key):
            if (facts := kept(run, stage)) is None:
                continue
            facts = completed(facts)
            if (wrong := what_is_wrong(facts)) is None:
                return Found(facts)
            found = found if found.wrong else Found(None, wrong, facts)
    return found


def completed(facts: dict[str, Any]) -> dict[str, Any]:
    """With what the store got of a training only after its end, by pipelines.sync: its model and its costs."""
    if "costs" not in facts or facts["costs"]:
        return facts
    found: dict[str, Any] = {"costs": costs_of(facts["run_id"])}
    if "model_uri" in facts:
        found["model_uri"] = facts["model_uri"] or sent_model(facts["run_id"], Path(facts["folder"]))
    return facts | found


def runs_with(stage: str, key: str) -> list[Run]:
    """The runs of `main` that have done, or begun, the stage with this key; the newest first."""
    if not is_there(mlflow.get_tracking_uri()):
        return []
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    with_key = f"tags.`{KEYS}` LIKE '%{stage}={key}%'"
    return list(client.search_runs(experiments, with_key, order_by=["attributes.start_time DESC"], max_results=MOST))


def kept(run: Run, stage: str) -> dict[str, Any] | None:
    """What a run of `main` says that the stage made; None where it was broken off, or nobody can read it any more."""
    try:
        facts = json.loads(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/{record_of(stage)}"))
    except (MlflowException, OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def record_of(stage: str) -> str:
    return f"stages/{stage}.json"


def keep(run: TrackedRun, stage: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes down in main's run what a stage made; returns it with the time."""
    content = {**facts, "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
    run.log_dict(content, record_of(stage))
    return content


def let_find(run: TrackedRun, keys: Mapping[str, str]) -> None:
    """keys: stage → key of those that the run has done, or begun."""
    run.set_tags({KEYS: " ".join(f"{stage}={key}" for stage, key in keys.items())})


def interrupted(stage: str, key: str) -> Path | None:
    """The output folder of a training with this key that was broken off, and can be gone on with."""
    client = MlflowClient()
    with contextlib.suppress(MlflowException):
        for run in runs_with(stage, key):
            below = f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and tags.stage = '{stage}'"
            for child in client.search_runs([run.info.experiment_id], below) if kept(run, stage) is None else ():
                folder = Path("outputs") / f"{stage}-{child.info.run_id}"
                with contextlib.suppress(ValueError):  # a damaged manifest
                    manifest = read_run_manifest(folder / CHECKPOINTS)
                    # One that is finished, and whose model the store hasn't got, gives evaluate nothing to look at.
                    sent = manifest and (manifest.model_uri or sent_model(child.info.run_id, folder / "model"))
                    if manifest and (sent or not manifest.finished) and not in_use(folder):
                        return folder
    return None


def in_use(folder: Path) -> bool:
    return (folder / LOCK).exists() and is_locked(folder / LOCK)


def left_in(stage: str, folder: Path) -> tuple[bool, str | None]:
    """(whether the stage has begun to write there, the code and libraries by which it came to its end, if known)."""
    if stage == "prepare":
        manifest = read_manifest(folder)
        return bool(manifest), None if manifest.get("unfinished") else manifest.get("program")
    try:
        run = read_run_manifest(folder / CHECKPOINTS)
    except ValueError:  # damaged
        return True, None
    return run is not None, run.program if run and run.finished else None


def make_room(stage: str, config: StageConfig, found: Found, forced: bool) -> Path | None:
    """Renames what stands where the stage will write and isn't to be used again; returns where it lies now.

    Left there it would be taken: a stage compares the configuration and the rows, not the code that made it.
    """
    place = config.folder if isinstance(config, PrepareConfig) else getattr(config, "output_dir", None)
    folder = Path(place or ".")
    if not folder.is_dir() or Path.cwd().is_relative_to(folder.resolve()) or in_use(folder):
        return None
    damaged = found.damaged is not None and (stage != "prepare" or wrong_files(found.damaged) is not None)
    begun, program = left_in(stage, folder)
    if not (damaged or (begun and forced) or program not in (None, program_of(stage, config))):
        return None
    name = f"{'damaged' if damaged and not forced else 'earlier'}.{folder.name}"
    aside, number = folder.with_name(name), 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{name}.{number}")
    shutil.move(folder, aside)
    return aside


@contextlib.contextmanager
def one_at_a_time(stage: str, key: str | None) -> Iterator[None]:
    """Two commands that would make the same wait for each other: the second then finds what the first has made."""
    name = sha256(f"{mlflow.get_tracking_uri()} {key}".encode()).hexdigest()
    lock = file_lock(cache_folder(None) / "stages" / f"{name[:32]}.lock")
    try:
        with contextlib.suppress(OSError):  # a file system without locks, or nowhere to write to
            if key:
                Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
                acquire(stage, lock)
        yield
    finally:
        lock.release()


def acquire(stage: str, lock: Any) -> None:
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        logger.warning("%s: another command makes the same; waiting for what it makes", stage)
        lock.acquire()
