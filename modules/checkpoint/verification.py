"""Whether a model folder is what was saved: hashes of its files, and golden logits (see model_folder.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..model.decoder import meta_decoder
from ..system.checksums import sha256_of
from ..system.paths import require_regular
from ..tokenizer.tokenizer import Tokenizer
from .weights import CheckpointError, StoredModel, StoredTensor, read_safetensors, save_tensors, weights_hash

GOLDEN_PROMPT = "白日依山尽，"


def write_golden(folder: Path, model: StoredModel, tokenizer: Tokenizer) -> None:
    """Writes golden.safetensors into a folder that holds all else."""
    hashes = {"weights": weights_hash(folder), "tokenizer": tokenizer.fingerprint}
    hashes["architecture"] = sha256_of(folder / "model.yaml")
    save_tensors(golden(model, tokenizer), folder / "golden.safetensors", hashes)


def golden(model: StoredModel, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """{"input_ids": (1, T) int64, "logits": (V,) float32}: the logits after GOLDEN_PROMPT."""
    ids = tokenizer.encode_prompt(GOLDEN_PROMPT)[: model.config.max_position_embeddings]
    input_ids = torch.tensor([ids or [tokenizer.end_of_text_id]])
    return {"input_ids": input_ids, "logits": next_token_logits(model, input_ids[0])}


@torch.no_grad()
def next_token_logits(model: StoredModel, input_ids: Tensor) -> Tensor:
    """Logits (V,) in float32 of the token after a text (T,), for decoders of any size and structure.

    Each module's weights are read when it is called and let go after it: one matrix is in memory at a time.
    """
    decoder = meta_decoder(model.config).eval()
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    for module in decoder.modules():
        if parameters := dict(module.named_parameters(recurse=False)):
            lend_weights(module, {part: model.weights[names[id(p)]] for part, p in parameters.items()})

    def head(hidden_states: Tensor, weight: Tensor) -> Tensor:
        # By parts of the vocabulary: a float32 copy of the whole of it may be larger than a layer.
        rows = model.weights[names[id(weight)]].read().split(8192)
        return torch.cat([decoder.head(hidden_states[0], part.float())[-1] for part in rows], dim=-1)

    return decoder(input_ids[None], head=head).contiguous()


def lend_weights(module: nn.Module, weights: Mapping[str, StoredTensor]) -> None:
    """Reads a module's own weights, by name, for each call of it, and takes them away after it."""
    shapes = dict(module._parameters)
    embeds = isinstance(module, nn.Embedding)  # a few rows are used: they alone become float32

    def before(*_: object) -> None:
        for name, weight in weights.items():
            module._parameters[name] = weight.read() if embeds else weight.read().float()  # type: ignore[assignment]

    def after(_: nn.Module, inputs: object, output: Tensor) -> Tensor:
        module._parameters.update(shapes)
        return output.float() if embeds else output

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def golden_difference(folder: Path, model: StoredModel, tokenizer: Tokenizer) -> float:
    """The largest difference between the saved golden logits and those that the model gives now."""
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
        require_regular(path)
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy it again from where it came from") from error
