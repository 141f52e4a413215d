"""The model that the MLflow registry serves: models from code, no pickle. MLflow runs this file to make it.

Requests have one column, src_txt, and the parameters of PARAMS; answers are {"text": …} a row. Everything a
client can get wrong is a 400 that names the field.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

from modules.checkpoint import load_for_inference, verify_model
from modules.config import GenerationConfig
from modules.text_generation import TextGenerator, generation_config
from modules.tokenizer import load_tokenizer

DEFAULTS = GenerationConfig()
PARAMS = ParamSchema(
    [
        ParamSpec("max_new_tokens", DataType.long, DEFAULTS.max_new_tokens),
        ParamSpec("temperature", DataType.double, DEFAULTS.temperature),
        ParamSpec("top_k", DataType.long, DEFAULTS.top_k),
        ParamSpec("top_p", DataType.double, DEFAULTS.top_p),
        ParamSpec("repetition_penalty", DataType.double, DEFAULTS.repetition_penalty),
        ParamSpec("seed", DataType.long, None),
        ParamSpec("stop", DataType.string, [], shape=(-1,)),
    ]
)
SIGNATURE = ModelSignature(
    # Texts, but declared as anything: of a declared string MLflow would make "5" from 5 and "None" from null
    # before predict could refuse them.
    inputs=Schema([ColSpec(AnyType(), "src_txt")]),
    outputs=Schema([ColSpec(DataType.string, "text")]),
    params=PARAMS,
)


class ServedModel(PythonModel):
    def load_context(self, context: Any) -> None:
        folder = context.artifacts["model"]
        verify_model(folder)
        self.generator = TextGenerator(load_for_inference(folder), load_tokenizer(folder))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, str]]:
        try:
            config = generation_config(**plain(params or {}))
            results: list[dict[str, str]] = self.generator(texts_of(model_input), **vars(config))
        except ValueError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        return results


def texts_of(model_input: Any) -> list[str]:
    if not isinstance(model_input, pd.DataFrame) or "src_txt" not in model_input.columns:
        raise ValueError('inputs must have the column src_txt, e.g. {"inputs": {"src_txt": ["白日依山尽，"]}}')
    texts = model_input["src_txt"].tolist()
    if len(texts) == 1 and isinstance(texts[0], list):  # how MLflow hands over {"inputs": {"src_txt": [...]}}
        texts = texts[0]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"src_txt of row {row} must be a text, not {text!r}")
    return texts


def plain(params: dict[str, Any]) -> dict[str, Any]:
    """MLflow hands numpy scalars and arrays; the rest of moyun takes Python's own."""
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in params.items()}


set_model(ServedModel())
