"""Hugging Face's GPT-2 layout in and out, which transformers and vLLM read: the same network under other names.

Weights of its Conv1D layers are (in, out), ours transposed; c_attn's output goes in three blocks (all Q, all K, all
V), ours head by head. Source: transformers 5, models/gpt2.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config.model import ModelConfig
from ...system.atomic import write_json
from ...system.bounded_read import read_json_object
from ...tokenizer.tokenizer import Tokenizer
from ..pickles import read_pickle
from ..weights import (
    SHARD_BYTES,
    CheckpointError,
    StoredModel,
    StoredTensor,
    check_shapes,
    files_or_shards,
    qkv_blocked,
    qkv_interleaved,
    read_files,
    read_safetensors,
    same_bits,
    shapes_of,
    stored,
    write_weights,
)
from .architecture import GPT3, renamed
from .huggingface_tokenizer import write_huggingface_tokenizer

NAMES = {
    "word_embeddings": "wte",
    "position_embeddings": "wpe",
    "transformer.final_layernorm": "ln_f",
    "transformer.layers": "h",
    "post_attention_layernorm": "ln_2",
    "input_layernorm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.dense": "attn.c_proj",
    "mlp.dense_h_to_4h": "mlp.c_fc",
    "mlp.dense_4h_to_h": "mlp.c_proj",
}

READERS = {"model.safetensors": read_safetensors, "pytorch_model.bin": lambda path: stored(read_pickle(path))}

CAUSAL_MASK = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")
"""Buffers that older files hold: they say nothing about the model."""

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new"}

# What transformers takes where config.json is silent (GPT2Config). Sizes must be said: shapes don't show them all.
DEFAULTS: dict[str, Any] = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
}

SIZES = {
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
}

HOLDABLE = GPT3


def read(folder: Path) -> StoredModel:
    """A GPT-2-layout folder: config.json with model.safetensors or pytorch_model.bin, in shards or not.

    Raises CheckpointError naming what is missing, extra, misshapen or of another architecture.
    """
    config = read_config(folder / "config.json")
    tensors = read_tensors(folder)
    head = tensors.pop("lm_head.weight", None)
    expected = shapes_of(config)
    shapes = {renamed(name, NAMES): shape[::-1] if is_conv1d(name) else shape for name, shape in expected.items()}
    check_shapes(folder, "config.json", shapes, tensors)
    if unreal := [f"{name} is {t.dtype}" for name, t in tensors.items() if not t.dtype.is_floating_point]:
        raise CheckpointError(f"{folder}: {'; '.join(unreal[:5])}, not real numbers")
    words = tensors["wte.weight"]
    if head and ((head.shape, head.dtype) != (words.shape, words.dtype) or not same_bits(head.read(), words.read())):
        raise CheckpointError(f"{folder}: lm_head.weight differs from wte.weight, to which this decoder's head is tied")
    weights = {}
    for name in expected:
        tensor = tensors[renamed(name, NAMES)]
        rows = tensor.map(torch.t) if is_conv1d(name) else tensor
        weights[name] = qkv_interleaved(name, rows, config.num_attention_heads)
    return StoredModel(config, weights)


def read_config(path: Path) -> ModelConfig:
    """The architecture of a GPT-2 config.json; CheckpointError with all that this decoder can't do."""
    options = read_json_object(path)
    if not options:
        raise CheckpointError(f"{path} is missing; give a folder in Hugging Face's layout")
    if options.get("model_type") != "gpt2":
        raise CheckpointError(
            f"{path}: model_type {options.get('model_type')!r} is another architecture; of Hugging Face's models "
            "only GPT-2's layout (model_type 'gpt2') can be read"
        )
    if complaints := list(not_supported(options)):
        raise CheckpointError("\n".join(f"{path}: {complaint}" for complaint in complaints))
    options = {**DEFAULTS, **options}
    if options["embd_pdrop"] != options["resid_pdrop"]:
        warnings.warn(
            f"{path}: embd_pdrop {options['embd_pdrop']} is left out: hidden_dropout_prob, from resid_pdrop "
            f"({options['resid_pdrop']}), holds for embeddings too; it matters in training only",
            stacklevel=2,
        )
    config = ModelConfig(
        **{ours: options[theirs] for theirs, ours in SIZES.items()},
        hidden_act=ACTIVATIONS[options["activation_function"]],  # type: ignore[arg-type]
        layer_norm_eps=options["layer_norm_epsilon"],
        initializer_range=options["initializer_range"],
        hidden_dropout_prob=options["resid_pdrop"],
        attention_probs_dropout_prob=options["attn_pdrop"],
    )
    if complaints := list(config.complaints()):
        raise CheckpointError("\n".join(f"{path}: {complaint}" for complaint in complaints))
    return config


def not_supported(options: Mapping[str, Any]) -> Iterator[str]:
    """What in a GPT-2 config.json stands against a plain GPT-2. reorder_and_upcast_attn changes no result."""
    unclear = [name for name in SIZES if type(options.get(name)) is not int]
    if unclear:
        yield f"{', '.join(unclear)} must be given as whole numbers"
    numbers = [name for name in DEFAULTS if name != "activation_function"]
    if bad := [name for name in numbers if type(options.get(name, 0)) not in (int, float)]:
        yield f"{', '.join(bad)} must be numbers"
    activation = options.get("activation_function", DEFAULTS["activation_function"])
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        yield f"activation_function {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
    inner = options.get("n_inner")
    if not unclear and inner not in (None, 4 * options["n_embd"]):
        yield f"n_inner {inner} is not supported; it must be four times n_embd ({4 * options['n_embd']})"
    if not options.get("scale_attn_weights", True):
        yield "scale_attn_weights false is not supported"
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention", "quantization_config"):
        if options.get(name):
            yield f"{name} is not supported"


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """By GPT-2's names without "transformer.", causal masks left out."""
    there = [n for n in READERS if (folder / n).is_file() or (folder / f"{n}.index.json").is_file()]
    if not there:
        raise CheckpointError(f"{folder} has no weights: {' or '.join(READERS)} (or its index and shards) is missing")
    found = read_files(files_or_shards(folder, there[0]), READERS[there[0]])
    tensors = {n.removeprefix("transformer."): t for n, t in found.items() if not CAUSAL_MASK.fullmatch(n)}
    twice = [name for name in tensors if name in found and f"transformer.{name}" in found]
    if twice:
        raise CheckpointError(f"{folder}: {twice[0]} is there with and without the prefix transformer.")
    return tensors


def is_conv1d(name: str) -> bool:
    """Whether the decoder's parameter is a weight that GPT-2 stores as (in, out)."""
    return name.endswith(".weight") and (".attention." in name or ".mlp." in name)


def write(folder: Path, model: StoredModel, tokenizer: Tokenizer, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """A folder that transformers' Auto classes load without remote code; returns notes for whoever exports.

    Fills an empty folder, with one file of at most shard_bytes in memory. Raises FileExistsError for one that isn't.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} isn't empty; nothing is overwritten: choose another name")
    config = model.config
    write_weights(folder, gpt2_tensors(model), shard_bytes)
    ids, notes = write_huggingface_tokenizer(folder, tokenizer, config)
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in model.weights.values()))
    write_json(folder / "config.json", gpt2_config(config) | ids | {"dtype": str(dtype).removeprefix("torch.")})
    # No length: vLLM would take max_new_tokens for the most that anyone may ask for, and with max_length
    # transformers complains whenever max_new_tokens is given.
    write_json(folder / "generation_config.json", ids)
    return notes


def gpt2_tensors(model: StoredModel) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in model.weights.items():
        rows = qkv_blocked(name, tensor.read(), model.config.num_attention_heads)
        yield f"transformer.{renamed(name, NAMES)}", rows.T if is_conv1d(name) else rows


def gpt2_config(config: ModelConfig) -> dict[str, Any]:
    """All keys that decide what GPT2LMHeadModel computes, defaults included."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        "n_inner": 4 * config.hidden_size,
        "activation_function": config.hidden_act,
        "layer_norm_epsilon": config.layer_norm_eps,
        "initializer_range": config.initializer_range,
        "resid_pdrop": config.hidden_dropout_prob,
        "embd_pdrop": config.hidden_dropout_prob,
        "attn_pdrop": config.attention_probs_dropout_prob,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
        "use_cache": True,
    }
