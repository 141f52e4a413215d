"""ModelScope's GPT-3 base and large: pytorch_model.bin, a BERT vocabulary, exact (erf) GELU, epsilon 1e-12.

query_key_value's rows are three blocks: all Q, all K, all V. (modelscope/models/nlp/gpt3/backbone.py) Also what both
of ModelScope's layouts share: config.json (its GPT3Config), configuration.json, the tokenizer's files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from ...config.loader import ConfigError, validate
from ...config.model import ModelConfig
from ...system.atomic import write_json
from ...system.bounded_read import read_json_object
from ...tokenizer.tokenizer import Tokenizer
from ..pickles import read_pickle, write_pickle
from ..weights import CheckpointError, StoredModel, check_shapes, qkv_blocked, qkv_interleaved, shapes_of, stored
from .architecture import GPT3, SIZES, Holdable

PREFIXES = ("model.language_model.", "language_model.")

RATES: dict[str, tuple[tuple[str, ...], float]] = {
    "layer_norm_eps": (("layernorm_epsilon",), 1e-12),
    "initializer_range": (("init_method_std", "initializer_range"), 0.02),
    "hidden_dropout_prob": (("hidden_dropout", "hidden_dropout_prob"), 0.1),
    "attention_probs_dropout_prob": (("attention_dropout", "attention_probs_dropout_prob"), 0.1),
}
"""Our name → GPT3Config's (the 1.3B and up have other names than base) and its default."""

HOLDABLE: Holdable = {**GPT3, "hidden_act": ("gelu",)}
"""ModelScope's class for this layout always computes the exact GELU."""


def read_architecture(
    path: Path, shapes: Mapping[str, tuple[int, ...]], hidden_act: Literal["gelu", "gelu_new"]
) -> ModelConfig:
    """config.json, with the sizes that it doesn't name taken from the tensors (ours by name → whole shape).

    intermediate_size is not read: published files have a wrong one, and the MLP is always 4·hidden_size wide.
    Nor is hidden_act, which ModelScope ignores. Raises CheckpointError for what is missing or impossible.
    """
    content = read_json_object(path)
    from_tensors = sizes_of(shapes)
    values: dict[str, Any] = {name: content.get(name, from_tensors.get(name)) for name in SIZES}
    for name, (theirs, default) in RATES.items():
        values[name] = next((content[key] for key in theirs if key in content), default)
    for name, value in values.items():
        if value is None:
            raise CheckpointError(f"{path}: {name} is missing; copy it from where the checkpoint came from")
        if not isinstance(value, int if name in SIZES else (int, float)) or isinstance(value, bool):
            raise CheckpointError(f"{path}: {name} must be a number, not {value!r}")
    config = ModelConfig(hidden_act=hidden_act, **values)
    try:
        validate(config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {'; '.join(error.complaints)}") from error
    for name, shape in shapes.items():
        if name.endswith("dense_h_to_4h.weight") and shape[:1] != (4 * config.hidden_size,):
            raise CheckpointError(
                f"{path.parent}: {name} is {shape}, not 4·hidden_size ({4 * config.hidden_size}) wide; "
                "the GPT-3 family has no other MLP, and this model can't be read"
            )
    return config


def sizes_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes that tensors tell; heads they don't."""
    sizes: dict[str, int] = {}
    if len(words := shapes.get("word_embeddings.weight", ())) == 2:
        sizes["vocab_size"], sizes["hidden_size"] = words
    if len(positions := shapes.get("position_embeddings.weight", ())) == 2:
        sizes["max_position_embeddings"] = positions[0]
    if layers := {name.split(".")[2] for name in shapes if name.startswith("transformer.layers.")}:
        sizes["num_hidden_layers"] = len(layers)
    return sizes


def config_json(model: StoredModel, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json for either layout: the rates under all their names."""
    config = model.config
    stored = {tensor.dtype for tensor in model.weights.values()}
    content = {name: getattr(config, name) for name in SIZES}
    content |= {key: getattr(config, name) for name, (theirs, _) in RATES.items() for key in theirs}
    return content | {
        "hidden_act": "gelu",
        "intermediate_size": 4 * config.hidden_size,
        "type_vocab_size": 2,
        "fp16": stored == {torch.float16},
        "bf16": stored == {torch.bfloat16},
        "eod_id": tokenizer.end_of_text_id,
    }


def configuration_json(preprocessor: str, pipeline: str, sequence_length: int) -> dict[str, Any]:
    """configuration.json: which of ModelScope's classes read the folder."""
    return {
        "framework": "pytorch",
        "task": "text-generation",
        "preprocessor": {"type": preprocessor, "sequence_length": sequence_length},
        "model": {"type": "gpt3"},
        "pipeline": {"type": pipeline},
    }


def write_modelscope_tokenizer(folder: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """tokenizer.json with moyun's tokenizer_config.json, so that any kind and prompt template comes back; vocab.txt
    for BERT's, which ModelScope reads. Returns token → id."""
    tokenizer.save(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab: dict[str, int] = content["model"]["vocab"]
    if tokenizer.kind == "bert":
        tokens = {number: token for token, number in vocab.items()}
        # A line that stood twice in the original vocab.txt left an id without a token: its line must be kept.
        lines = [tokens.get(number, f"[no token {number}]") for number in range(tokenizer.vocab_size)]
        (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return vocab


WEIGHTS = "pytorch_model.bin"


def read(folder: Path) -> StoredModel:
    """Raises CheckpointError naming file and tensor where the folder isn't whole and sound."""
    path = folder / WEIGHTS
    tensors = stored(read_pickle(path, PREFIXES))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = read_architecture(folder / "config.json", shapes, "gelu")
    expected = shapes_of(config)
    check_shapes(path, "config.json", expected, tensors)
    heads = config.num_attention_heads
    return StoredModel(config, {name: qkv_interleaved(name, tensors[name], heads) for name in expected})


def write(folder: Path, model: StoredModel, tokenizer: Tokenizer) -> None:
    """Fills an empty folder with what ModelScope reads as GPT-3 base or large."""
    heads = model.config.num_attention_heads
    tensors = {f"language_model.{name}": qkv_blocked(name, t.read(), heads) for name, t in model.weights.items()}
    write_pickle(folder / WEIGHTS, tensors)
    write_modelscope_tokenizer(folder, tokenizer)
    write_json(folder / "config.json", config_json(model, tokenizer))
    length = model.config.max_position_embeddings
    write_json(folder / "configuration.json", configuration_json("text-gen-tokenizer", "text-generation", length))
