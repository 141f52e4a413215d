"""Which LoggedModel of the store a path or URI means, and which run has made it: the links of evaluate and register."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, LoggedModel, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException

from ...checkpoint.formats import is_training_checkpoint
from ...checkpoint.model_folder import read_provenance
from ...training.checkpoints.run_manifest import read_run_manifest
from ..outbox.logged_models import CHECKPOINT, STEP, models_of, search_models
from ..outbox.store import why
from .exported_model import WEIGHTS, holds, identity_of

if TYPE_CHECKING:
    from ..tracked_run import TrackedRun

logger = logging.getLogger("moyun.tracking")

MODEL_ID = re.compile(r"models:/(m-[0-9a-f]{32})/?")


def log_used_model(run: TrackedRun, place: str, folder: Path) -> str | None:
    """Logs the model that a stage reads as an input of its run; returns its id, to log the model's scores with.

    Args:
        place: As the user named it.
        folder: What resolve_model made of it.
    """
    try:
        model = known_model(place, folder)
    except Exception as error:  # a link that is missing is no reason to score nothing
        logger.warning("tracking: the model %s isn't linked to run %s: %s", place, run.info.run_id, why(error))
        return None
    if model is None:
        return None
    run.log_model_input(model.model_id)
    return str(model.model_id)


def known_model(place: str, folder: Path) -> LoggedModel | None:
    """The LoggedModel of what stands in a folder; None where the store has none of it."""
    client = MlflowClient()
    if (named := named_id(place, folder)) and (model := logged_model(client, named)):
        return model
    run = run_behind(folder)
    if is_training_checkpoint(folder):
        step = folder.resolve().name.removeprefix("step=").removesuffix(".ckpt")
        made = models_of(client, run) if run else []
        return next((model for model in made if model.tags.get(STEP) == step), None)
    identity = identity_of(folder)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = search_models(client, experiments, f"tags.`{WEIGHTS}` = '{identity[WEIGHTS]}'")
    same = [m for m in found if m.status == LoggedModelStatus.READY and holds(m.tags, identity)]
    own = [model for model in same if run and model.source_run_id == run.info.run_id]
    return next(iter(own + same), None)


def sent_model(run_id: str, folder: Path) -> str | None:
    """URI of the model of a run that the store has, if it is the one in the folder. None also where nobody can say."""
    try:
        identity = identity_of(folder)
        made = models_of(client := MlflowClient(), client.get_run(run_id))
    except (MlflowException, OSError, ValueError):
        return None
    whole = (model for model in made if model.status == LoggedModelStatus.READY and holds(model.tags, identity))
    return next((str(model.model_uri) for model in whole), None)


def named_id(place: str, folder: Path) -> str | None:
    """The model's id in the URI, or in the MLmodel file of what MLflow has downloaded for it."""
    if match := MODEL_ID.fullmatch(place):
        return match[1]
    try:
        content = yaml.safe_load((folder.parents[1] / "MLmodel").read_text(encoding="utf-8"))
        return content.get("model_id")
    except (OSError, IndexError, ValueError, AttributeError, yaml.YAMLError):
        return None


def logged_model(client: MlflowClient, model_id: str) -> LoggedModel | None:
    """None where it isn't in this store, or was deleted."""
    try:
        return client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def run_behind(folder: Path) -> Run | None:
    """The run of this store that made a model folder or checkpoint; None where it isn't known, or was deleted."""
    facts = read_provenance(folder)
    if is_training_checkpoint(folder):
        manifest = read_run_manifest(folder.resolve().parent)
        facts = {"run_id": manifest.run_id if manifest else None}
    elif isinstance(source := facts.get("source"), dict) and is_training_checkpoint(Path(str(source.get("path")))):
        return run_behind(Path(str(source["path"])))
    if not (run_id := facts.get("run_id")):
        return None
    client = MlflowClient()
    try:
        run = client.get_run(str(run_id))
        experiment = client.get_experiment(run.info.experiment_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the latter for what is no id
            return None
        raise
    alive = {run.info.lifecycle_stage, experiment.lifecycle_stage} == {LifecycleStage.ACTIVE}
    return run if alive else None


def weights_elsewhere(uri: str) -> Path | None:
    """The folder of a checkpoint that a URI names, whose weights aren't in the store; None for any other model.

    Raises ValueError where the folder isn't here.
    """
    client = MlflowClient()
    model = None
    if match := MODEL_ID.fullmatch(uri):
        model = logged_model(client, match[1])
    elif match := re.fullmatch(r"runs:/([0-9a-f]{32})/(checkpoint-\d+)/?", uri):
        model = next((each for each in models_of(client, client.get_run(match[1])) if each.name == match[2]), None)
    if model is None or CHECKPOINT not in model.tags:
        return None
    folder = Path(model.tags[CHECKPOINT])
    if not folder.is_dir():
        raise ValueError(
            f"{uri} is the checkpoint of step {model.tags[STEP]} of run {model.source_run_id}, whose weights the store "
            f"doesn't hold: they were in {folder}, which isn't here. Give a path to a copy, or the run's model"
        )
    return folder
