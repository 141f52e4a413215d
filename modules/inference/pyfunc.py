"""The model that the MLflow registry serves: models from code, no pickle. MLflow runs this file to make it.

Requests have one column, src_txt, and the parameters of PARAMS; answers are {"text": …} a row. Everything a
client can get wrong is a 400 that names the field.

MLflow's model_config says what computes: {"backend": "llama_cpp", "dtype": "q8_0"} exports the model to a temporary
GGUF file when it is loaded (dtype as for `convert format=gguf`), and needs the extras gguf and llama_cpp.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

# Absolute imports: MLflow runs this file as a script, beside the `modules` that the model carries.
from modules.checkpoint import formats as interop
from modules.checkpoint.loading import load_for_inference, open_model, verify_model
from modules.inference.llama_cpp import LlamaCpp
from modules.inference.signature import MODEL_CONFIG
from modules.inference.text_generator import TextGenerator, generation_config
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import load_tokenizer


class ServedModel(PythonModel):
    def load_context(self, context: Any) -> None:
        folder = context.artifacts["model"]
        verify_model(folder)
        self.generator = TextGenerator(decoder_of(folder, context.model_config or {}), load_tokenizer(folder))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, str]]:
        try:
            config = generation_config(**plain(params or {}))
            results: list[dict[str, str]] = self.generator(texts_of(model_input), **vars(config))
        except ValueError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        return results


def decoder_of(folder: str, options: dict[str, Any]) -> Decoder | LlamaCpp:
    """What `options`, MLflow's model_config, asks for (MODEL_CONFIG has the defaults)."""
    backend, dtype = (options.get(name, default) for name, default in MODEL_CONFIG.items())
    if backend == "torch":
        return load_for_inference(folder, dtype)
    if backend != "llama_cpp":
        raise ValueError(f"model_config: backend={backend!r} must be torch or llama_cpp")
    with tempfile.TemporaryDirectory(prefix="moyun-gguf-") as exported:
        number_format = "keep" if dtype == "auto" else dtype
        interop.write(Path(exported), "gguf", open_model(folder), load_tokenizer(folder), dtype=number_format)
        return LlamaCpp(Path(exported))  # the file stays mapped, and its space taken, for as long as this lives


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
