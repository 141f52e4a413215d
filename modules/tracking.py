"""MLflow: one run a stage, nested under whoever started it, with all that tells where a result came from."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from .config import CommandConfig, StageConfig, TrackingConfig, TrainingConfig, to_dict, to_yaml
from .places import is_registered, model_folder

if TYPE_CHECKING:
    import datasets

PACKAGES = ("torch", "pytorch-lightning", "mlflow", "datasets", "tokenizers", "safetensors", "omegaconf")
PARAM_PREFIX = "cfg."  # `mlflow run` logs the parameters it was given under their bare names; ours must not collide
PARAM_LIMIT = 6000  # characters; MLflow's store cuts or refuses more
PARAMS_AT_ONCE = 100  # MLflow's limit for one call
PARAM_NAME = re.compile(r"[^\w. -]")  # what MLflow allows beside these ("/", ":") would make a name a path
PARAM_NAME_LIMIT = 250
SECRET = r"password|passwd|token(?![a-z])|secret|api[_-]?key|access[_-]?key|credential"
SECRET_KEY = re.compile(SECRET, re.IGNORECASE)
SECRETS_IN_TEXT = (
    re.compile(r"(?<=://)(?:[^/@\s]*:\S+|[^/\s]+)(?=@)"),  # user:password or token, "/" and "@" in it too
    re.compile(rf"(?<=[?&;])((?:\w|-)*(?:{SECRET})\w*=)[^&;\s]+", re.IGNORECASE),
)


def connect(config: TrackingConfig | None = None, folder: str | Path = ".") -> str:
    """Points MLflow at the tracking store and returns its URI; by default mlflow.db in the folder."""
    uri = (config.tracking_uri if config else None) or os.environ.get("MLFLOW_TRACKING_URI")
    uri = uri or f"sqlite:///{Path(folder).resolve() / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return uri


@contextmanager
def stage_run(stage: str, config: StageConfig, continues: str | None = None) -> Iterator[mlflow.ActiveRun]:
    """The MLflow run of a stage: FINISHED at the end, FAILED if it raises, KILLED if it is interrupted.

    Inside another run it is nested, in that run's store and experiment. Under `mlflow run` it is the run that the
    command made, never a second one beside it.
    """
    parent = mlflow.active_run()
    if not parent:
        connect(config.tracking)
    # start_run itself finds MLFLOW_RUN_ID and takes it out of the environment, so that nested runs don't find it too.
    from_command_line = not parent and "MLFLOW_RUN_ID" in os.environ
    if not parent and not from_command_line:
        mlflow.set_experiment(config.tracking.experiment_name)
    os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "2")  # seconds; MLflow's 10 miss short stages
    run = mlflow.start_run(
        run_name=None if from_command_line else stage,
        experiment_id=parent.info.experiment_id if parent else None,
        nested=parent is not None,
        log_system_metrics=config.tracking.log_system_metrics,
    )
    status = "FAILED"
    try:
        log_provenance(stage, config)
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        mlflow.end_run(status)


def log_provenance(stage: str, config: StageConfig) -> None:
    resolved = redact(to_dict(config))
    mlflow.set_tags({"stage": stage, **git_state(), **{f"version.{name}": version(name) for name in PACKAGES}})
    params = {param_name(key): str(value)[:PARAM_LIMIT] for key, value in flatten(resolved)}
    names = sorted(params)
    for start in range(0, len(names), PARAMS_AT_ONCE):
        mlflow.log_params({name: params[name] for name in names[start : start + PARAMS_AT_ONCE]})
    mlflow.log_text(to_yaml(resolved), "config.yaml")


def param_name(key: str) -> str:
    """A user's column name may hold what MLflow refuses in a parameter's name; config.yaml has it as it is."""
    return (PARAM_PREFIX + PARAM_NAME.sub("_", key))[:PARAM_NAME_LIMIT]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def redact(tree: Mapping[str, Any], secret: bool = False) -> dict[str, Any]:
    """Without passwords: values of keys that sound like one, and what stands in URLs as user, password or token."""
    return {key: redact_value(value, secret or bool(SECRET_KEY.search(key))) for key, value in tree.items()}


def redact_value(value: Any, secret: bool = False) -> Any:
    if isinstance(value, Mapping):
        return redact(value, secret)
    if isinstance(value, (list, tuple)):
        return [redact_value(part, secret) for part in value]
    if not isinstance(value, str) or not value:
        return value
    return "(redacted)" if secret else redact_text(value)


def redact_text(text: str) -> str:
    in_url, in_query = SECRETS_IN_TEXT
    return in_query.sub(r"\1(redacted)", in_url.sub("(redacted)", text))


def git_state() -> dict[str, str]:
    """{"git.commit": …, "git.dirty": "true" or "false"} of this code; empty outside a checkout."""
    root = Path(__file__).parents[1]
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"git.commit": commit.strip(), "git.dirty": str(bool(status.strip())).lower()}


def provenance(config: CommandConfig, **facts: Any) -> dict[str, Any]:
    """What run.yaml in a model folder says: the run, the code, the versions, and what the stage adds."""
    run = mlflow.active_run()
    return {
        "run_id": run.info.run_id if run else None,
        "config": redact(to_dict(config)),
        **git_state(),
        "versions": {name: version(name) for name in PACKAGES},
        **redact(facts),
    }


def log_rows(rows: datasets.Dataset, source: str, context: str) -> str:
    """Rows as a tracked MLflow dataset input; returns their fingerprint."""
    from mlflow.data.huggingface_dataset import from_huggingface

    from .rows import fingerprint

    digest = fingerprint(rows)
    source = redact_text(source)
    tracked = from_huggingface(rows, path=source, name=f"{Path(source).name}-{context}", digest=digest[:32])
    mlflow.log_input(tracked, context=context)
    return digest


def metric_history(run_id: str, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Metric → (step, value) of every step that was logged."""
    client = MlflowClient()
    return {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in names}


def resolve_model(uri: str) -> Path:
    """A model folder from a path or a models:/ URI (models:/NAME@ALIAS, models:/NAME/VERSION, models:/MODEL_ID).

    A path may be of any format that checkpoint.open_model reads.
    """
    if not is_registered(uri):
        return model_folder(uri)
    try:
        downloaded = Path(mlflow.artifacts.download_artifacts(uri))
    except MlflowException as error:
        raise ValueError(
            f"{uri}: {error.message} (tracking store: {redact_text(mlflow.get_tracking_uri())}). "
            "`make demo` registers models:/moyun@champion; a model folder's path works here too"
        ) from error
    found = sorted(downloaded.glob("artifacts/*/model.yaml"))
    if not found:
        raise ValueError(f"{uri} holds no moyun model folder (artifacts/*/model.yaml) under {downloaded}")
    return found[0].parent


def output_folder(stage: str, config: TrainingConfig) -> Path:
    """Where the active run's stage writes: config.output_dir, which must be empty or new, or a name of its own."""
    if config.output_dir is None:
        run = mlflow.active_run()
        assert run is not None
        folder = Path("outputs") / f"{stage}-{run.info.run_id}"
    else:
        folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
