"""The signature of a registered model: what MLflow says that it takes and gives."""

from __future__ import annotations

from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

from ..config.generation import GenerationConfig

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

MODEL_CONFIG = {"backend": "torch", "dtype": "auto"}
"""What may be chosen when the model is loaded, logged with it since MLflow takes no other keys later."""

SIGNATURE = ModelSignature(
    # Texts, but declared as anything: of a declared string MLflow would make "5" from 5 and "None" from null
    # before predict could refuse them.
    inputs=Schema([ColSpec(AnyType(), "src_txt")]),
    outputs=Schema([ColSpec(DataType.string, "text")]),
    params=PARAMS,
)
