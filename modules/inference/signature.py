"""The signature of a registered model: what MLflow lets a client send, and what it sends back."""

from __future__ import annotations

from dataclasses import fields

from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

from ..config.generation import GenerationConfig

TYPES = {
    "int": DataType.long,
    "int | None": DataType.long,
    "float": DataType.double,
    "bool": DataType.boolean,
    "str | None": DataType.string,
    "list[str]": DataType.string,
}
"""A generation parameter's type → MLflow's, which has none for a mapping: logit_bias is taken, but not declared."""

PARAMS = ParamSchema(
    [
        ParamSpec(
            entry.name,
            TYPES[str(entry.type)],
            getattr(GenerationConfig(), entry.name),
            shape=(-1,) if entry.type == "list[str]" else None,
        )
        for entry in fields(GenerationConfig)
        if str(entry.type) in TYPES
    ]
)

MODEL_CONFIG = {"dtype": "auto"}
"""What may be chosen when the model is loaded, logged with it since MLflow takes no other keys later."""

SIGNATURE = ModelSignature(
    # Texts, but declared as anything: of a declared string MLflow would make "5" from 5 and "None" from null
    # before predict could refuse them.
    inputs=Schema([ColSpec(AnyType(), "src_txt")]),
    outputs=Schema([ColSpec(DataType.string, "text")]),
    params=PARAMS,
)
