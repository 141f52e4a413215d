"""The model that the MLflow registry serves: models from code, no pickle. MLflow runs this file to make it.

Requests have one column, src_txt, and the parameters of signature.PARAMS; answers are a table with the column text,
in JSON {"text": …} a row. Everything a client can get wrong is a 400 that names the field. MLflow's model_config may
choose the number format to compute in: {"dtype": "int8"}, with the values that `load_for_inference` takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

# Absolute imports: MLflow runs this file as a script, beside the `modules` that the model carries.
from modules.checkpoint.loading import load_for_inference, verify_model
from modules.config.base import ConfigError, shown
from modules.config.generation import GenerationConfig
from modules.inference.given_to_mlflow import frame_of, hand_over_as_given
from modules.inference.mlflow_input import COLUMN
from modules.inference.signature import MODEL_CONFIG, PARAMS
from modules.inference.text_generator import TextGenerator
from modules.tokenizer.tokenizer import load_tokenizer

KNOWN = [param.name for param in PARAMS.params]
BATCH_ROWS = 32
"""Texts that are continued at once: a table may have thousands of rows, and memory is taken by each."""


class ServedModel(PythonModel):
    def load_context(self, context: Any) -> None:
        folder = context.artifacts["model"]
        verify_model(folder)
        options = MODEL_CONFIG | (context.model_config or {})
        self.generator = TextGenerator(load_for_inference(folder, options["dtype"]), load_tokenizer(folder))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        try:
            config = config_of(params)
            frame = frame_of(model_input)
            texts = texts_of(frame)
            batches = [texts[start : start + BATCH_ROWS] for start in range(0, len(texts), BATCH_ROWS)]
            rows = [row for batch in batches for row in self.generator(batch, **vars(config))]
        except ValueError as error:
            message = "; ".join(error.complaints) if isinstance(error, ConfigError) else str(error)
            raise MlflowException(message, error_code=INVALID_PARAMETER_VALUE) from None
        return pd.DataFrame({"text": [row["text"] for row in rows]}, index=frame.index, dtype=object)


def config_of(params: Any) -> GenerationConfig:
    """Raises ValueError for what the server refuses as well."""
    if not isinstance(params, Mapping | None):
        raise ValueError(f"params must be an object, e.g. {{'max_new_tokens': 32}}, not {shown(params)}")
    for name in params or {}:
        if name not in KNOWN:
            raise ValueError(f"{shown(name)} isn't known here; there is {', '.join(KNOWN)}")
    return GenerationConfig.parse(params or {})


def texts_of(frame: pd.DataFrame) -> list[str]:
    """Raises ValueError where something else than a text stands in the column."""
    texts: list[str] = frame[COLUMN].tolist()
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{COLUMN} of row {row} must be a text, not {shown(text)}")
    return texts


hand_over_as_given()
set_model(ServedModel())
