"""Model folders ↔ MLflow's model registry: logging without pickle, registering, and who is champion."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import mlflow
import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from .serving import MODEL_CONFIG, SIGNATURE

MODULES = Path(__file__).parent
SERVING_PACKAGES = ("mlflow", "torch", "tokenizers", "safetensors", "omegaconf", "numpy", "pandas")
EXAMPLE = (pd.DataFrame({"src_txt": ["白日依山尽，"]}), {"max_new_tokens": 16, "temperature": 0.0})


def log_model(folder: Path) -> str:
    """Logs a model folder to the active run as a pyfunc that serves itself; returns its models:/ URI."""
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(MODULES / "serving.py"),
        artifacts={"model": str(folder)},
        code_paths=[str(MODULES)],
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in SERVING_PACKAGES],
        signature=SIGNATURE,
        model_config=dict(MODEL_CONFIG),
        input_example=EXAMPLE,
    )
    return str(info.model_uri)


def register_version(model_uri: str, name: str, tags: dict[str, str]) -> str:
    """Makes a new version of `name` and returns its number."""
    return str(mlflow.register_model(model_uri, name, tags=tags).version)


def version_with_alias(name: str, alias: str) -> ModelVersion | None:
    """The version that carries the alias, None where there is none."""
    try:
        return MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def move_alias(name: str, alias: str, number: str) -> None:
    MlflowClient().set_registered_model_alias(name, alias, number)
