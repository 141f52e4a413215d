"""The model that the MLflow registry serves: models from code, no pickle. MLflow runs this file to make it.

Requests have one column, src_txt, and the parameters of signature.PARAMS; answers are {"text": …} a row. Everything
a client can get wrong is a 400 that names the field. MLflow's model_config may choose the number format to compute
in: {"dtype": "int8"}, with the values that `load_for_inference` takes.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

# Absolute imports: MLflow runs this file as a script, beside the `modules` that the model carries.
from modules.checkpoint.loading import load_for_inference, verify_model
from modules.config.generation import GenerationConfig
from modules.inference.signature import MODEL_CONFIG
from modules.inference.text_generator import TextGenerator
from modules.tokenizer.tokenizer import load_tokenizer


class ServedModel(PythonModel):
    def load_context(self, context: Any) -> None:
        folder = context.artifacts["model"]
        verify_model(folder)
        options = MODEL_CONFIG | (context.model_config or {})
        self.generator = TextGenerator(load_for_inference(folder, options["dtype"]), load_tokenizer(folder))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, str]]:
        try:
            config = GenerationConfig.parse(params or {})
            results: list[dict[str, str]] = self.generator(texts_of(model_input), **vars(config))
        except ValueError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        return results


def texts_of(model_input: Any) -> list[str]:
    """The texts of the column src_txt. Raises ValueError where there is no such column, or something else in it."""
    if not isinstance(model_input, pd.DataFrame) or "src_txt" not in model_input.columns:
        raise ValueError('inputs must have the column src_txt, e.g. {"inputs": {"src_txt": ["白日依山尽，"]}}')
    texts = model_input["src_txt"].tolist()
    if len(texts) == 1 and isinstance(texts[0], list):  # how MLflow hands over {"inputs": {"src_txt": [...]}}
        texts = texts[0]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"src_txt of row {row} must be a text, not {text!r}")
    return texts


set_model(ServedModel())
