"""What of an architecture another format can hold: asked before anything is written in it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from ...config.model import ModelConfig

Holdable = Mapping[str, Collection[object] | None]
"""Field of ModelConfig → the values that a format can hold; None: any. Other fields must have their defaults."""

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
RATES = ("layer_norm_eps", "initializer_range", "hidden_dropout_prob", "attention_probs_dropout_prob")
GPT3: Holdable = dict.fromkeys((*SIZES, *RATES)) | {"hidden_act": ("gelu", "gelu_new")}

MATRICES = "attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
NORMS = "input_layernorm", "post_attention_layernorm"
LAYER = re.compile(r"(?<=transformer\.layers\.)\d+")


def unknown_options(config: ModelConfig, holdable: Holdable) -> Iterator[str]:
    """name=value of each field that a format can't hold, a new one that it doesn't know included."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        values = holdable.get(field.name, [default])
        if values is not None and value not in values:
            yield f"{field.name}={value}"


def renamed(name: str, table: Mapping[str, str]) -> str:
    """A parameter's name with each of the table's left sides replaced by its right one, in order."""
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def other_weights(names: Iterable[str]) -> list[str]:
    """The weights that GPT-3 doesn't have, and those that it has and aren't there; layer numbers as *."""
    modules = [f"transformer.layers.*.{name}" for name in (*NORMS, *MATRICES)] + ["transformer.final_layernorm"]
    expected = {f"{name}.{part}" for name in modules for part in ("weight", "bias")}
    expected |= {"word_embeddings.weight", "position_embeddings.weight"}
    found = {LAYER.sub("*", name) for name in names}
    return sorted(found - expected) + [f"no {name}" for name in sorted(expected - found)]
