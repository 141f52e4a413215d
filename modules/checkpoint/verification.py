"""Whether a model folder is what was saved: hashes of its files, and golden logits.

golden.safetensors holds a prompt's ids and the logits of its next token; its metadata says what weights, tokenizer and
model.yaml hashed to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.func import functional_call

from ..model.decoder import meta_decoder, positions_of
from ..system.checksums import sha256_of
from ..tokenizer.tokenizer import Tokenizer
from .weights import CheckpointError, StoredModel, read_safetensors, save_tensors, weights_hash

CHANGED = "model.safetensors differs from what was saved; copy the folder again"
GOLDEN_PROMPT = "白日依山尽，"


def write_golden(folder: Path, model: StoredModel, tokenizer: Tokenizer) -> None:
    """golden.safetensors of a folder that holds all else."""
    hashes = {"weights": weights_hash(folder), "tokenizer": tokenizer.fingerprint}
    hashes["architecture"] = sha256_of(folder / "model.yaml")
    save_tensors(golden(model, tokenizer), folder / "golden.safetensors", hashes)


def golden(model: StoredModel, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """{"input_ids": (1, T) int64, "logits": (V,) float32}: what the model says after a fixed prompt."""
    ids = tokenizer.encode_prompt(GOLDEN_PROMPT)[: model.config.max_position_embeddings]
    input_ids = torch.tensor([ids or [tokenizer.end_of_text_id]])
    return {"input_ids": input_ids, "logits": layer_by_layer(model, input_ids[0])[-1].contiguous()}


@torch.no_grad()
def layer_by_layer(model: StoredModel, input_ids: Tensor) -> Tensor:
    """Logits (T, V) of one text (T,) in float32, with never more than one layer in memory: for models of any size."""
    decoder = meta_decoder(model.config).eval()
    embeddings = model.weights["word_embeddings.weight"].read()
    positions = model.weights["position_embeddings.weight"].read()[positions_of([len(input_ids)], input_ids.device)]
    x = embeddings[input_ids].float() + positions.float()
    modules: list[tuple[str, nn.Module, tuple[Any, ...]]] = [
        (f"transformer.layers.{number}.", layer, ([(1, len(input_ids))], None))
        for number, layer in enumerate(decoder.transformer.layers)
    ]
    for prefix, module, others in [*modules, ("transformer.final_layernorm.", decoder.transformer.final_layernorm, ())]:
        weights = {name: model.weights[prefix + name].read().float() for name in module.state_dict()}
        x = functional_call(module, weights, (x, *others))
    # By parts of the vocabulary: a float32 copy of the whole of it may be larger than a layer.
    return torch.cat([decoder.head(x, rows.float()) for rows in embeddings.split(8192)], dim=-1)


def golden_difference(folder: Path, model: StoredModel, tokenizer: Tokenizer) -> float:
    """The largest of the golden logits' differences from what the model says now."""
    found = golden(model, tokenizer)
    saved = read_safetensors(folder / "golden.safetensors")
    if found.keys() != saved.keys() or any(
        (saved[name].shape, saved[name].dtype) != (tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()
    ):
        raise CheckpointError(f"{folder}: golden.safetensors is of another model; copy the folder again")
    return float((found["logits"] - saved["logits"].read()).abs().max())


def saved_hashes(folder: Path) -> dict[str, str]:
    """What a model folder's weights, tokenizer and model.yaml hashed to when it was written."""
    path = folder / "golden.safetensors"
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy it again from where it came from") from error
