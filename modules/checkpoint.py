"""The model folder: complete, pickle-free, and either wholly there or not at all.

model.safetensors       weights by the decoder's parameter names, query_key_value in three blocks (all Q, all K, all V)
                        as in the published base checkpoints; above 5 GB several files and model.safetensors.index.json
model.yaml              architecture (config.ModelConfig)
tokenizer.json          with tokenizer_config.json: the tokenizer and its prompt template
run.yaml                where it comes from: resolved config, data, versions
golden.safetensors      a prompt's ids and the logits of its next token, to prove a copy or a reader right; its
                        metadata says what the weights and the tokenizer hash to
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from .config import ModelConfig, load_model_config, to_yaml
from .decoder import Decoder, positions_of
from .tokenizer import Tokenizer, load_tokenizer
from .weights import (
    CheckpointError,
    StoredModel,
    blocks_to_heads,
    differences,
    heads_to_blocks,
    read_weights,
    safetensors_files,
    weights_hash,
    write_weights,
)

FILES = ("golden.safetensors", "model.yaml", "run.yaml", "tokenizer.json", "tokenizer_config.json")
"""What a model folder holds beside its weights."""
GOLDEN_PROMPT = "白日依山尽，"


def build_decoder(config: ModelConfig, seed: int) -> Decoder:
    """Fresh weights, laid out on the meta device first so that they are written once."""
    decoder = meta_decoder(config)
    decoder.to_empty(device="cpu")
    decoder.init_weights(torch.Generator().manual_seed(seed))
    return decoder


def meta_decoder(config: ModelConfig) -> Decoder:
    """Shapes without memory."""
    with torch.device("meta"):
        return Decoder(config)


def save_model(folder: Path, decoder: Decoder, tokenizer: Tokenizer, run: Mapping[str, Any]) -> Path:
    """`write_model` for a decoder in memory."""
    return write_model(folder, decoder.config, decoder.state_dict().items(), tokenizer, run)


def write_model(
    folder: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    tokenizer: Tokenizer,
    run: Mapping[str, Any],
) -> Path:
    """Writes a model folder under a temporary name, syncs it to disk, then renames it.

    tensors: the decoder's, one by one; no more than one file of them is held in memory.
    Raises FileExistsError rather than overwrite.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; a model folder is never overwritten: choose another name")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        write_weights(draft, in_blocks(tensors, config))
        architecture = {name: getattr(config, name) for name in ModelConfig.__dataclass_fields__}
        (draft / "model.yaml").write_text(to_yaml(architecture), encoding="utf-8")
        (draft / "run.yaml").write_text(to_yaml(run), encoding="utf-8")
        tokenizer.save(draft)
        hashes = {"weights": weights_hash(draft), "tokenizer": tokenizer.fingerprint}
        save_file(golden(read_model(draft), tokenizer), draft / "golden.safetensors", metadata=hashes)
        for path in [*draft.iterdir(), draft]:
            sync(path)
        draft.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder


def in_blocks(tensors: Iterable[tuple[str, Tensor]], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        yield name, heads_to_blocks(tensor, config.num_attention_heads) if "query_key_value" in name else tensor


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def default_device() -> torch.device:
    """The accelerator, where there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def open_model(folder: str | Path) -> StoredModel:
    """A model folder's architecture and weights, still on disk. Raises CheckpointError for what it lacks."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is no complete model folder: {', '.join(missing)} missing")
    return read_model(folder)


def read_model(folder: Path) -> StoredModel:
    config = load_model_config(folder / "model.yaml")
    weights = read_weights(folder)
    expected = {name: tuple(tensor.shape) for name, tensor in meta_decoder(config).state_dict().items()}
    complaints = list(differences(expected, {name: tensor.shape for name, tensor in weights.items()}))
    if complaints:
        file = safetensors_files(folder)[0] if len(safetensors_files(folder)) == 1 else folder
        raise CheckpointError(f"{file} doesn't fit model.yaml: " + "; ".join(complaints[:5]))
    heads = config.num_attention_heads
    by_head = {
        name: tensor.map(lambda rows: blocks_to_heads(rows, heads)) if "query_key_value" in name else tensor
        for name, tensor in weights.items()
    }
    return StoredModel(config, by_head)


def load_model(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Decoder:
    """A model folder's decoder in eval mode, by default in the number format that it is stored in.

    Raises CheckpointError naming what is missing, extra or misshapen.
    """
    model = open_model(folder)
    decoder = meta_decoder(model.config)
    weights = {name: tensor.read().to(device, dtype) for name, tensor in model.weights.items()}
    decoder.load_state_dict(weights, strict=True, assign=True)
    return decoder.requires_grad_(True).eval()


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
    logits: Tensor = decoder.head(x.to(embeddings.dtype), embeddings)
    return logits.float()


def verify_model(folder: str | Path, tolerance: float = 1e-3) -> float:
    """Recomputes the golden logits and returns the largest difference; CheckpointError where it is too large.

    One prompt doesn't touch every weight and token, so their hashes are compared too.
    """
    folder = Path(folder)
    model, tokenizer = open_model(folder), load_tokenizer(folder)
    path = folder / "golden.safetensors"
    try:
        with safe_open(path, "pt") as file:
            hashes = file.metadata() or {}
        expected = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy it again from where it came from") from error
    if hashes.get("tokenizer") != tokenizer.fingerprint:
        raise CheckpointError(f"{folder}: the tokenizer or prompt template differs from the one it was saved with")
    if hashes.get("weights") != weights_hash(folder):
        raise CheckpointError(f"{folder}: model.safetensors differs from what was saved; copy the folder again")
    found = golden(model, tokenizer)
    if {name: t.shape for name, t in found.items()} != {name: t.shape for name, t in expected.items()}:
        raise CheckpointError(f"{folder}: golden.safetensors is of another model; copy the folder again")
    difference = float((found["logits"] - expected["logits"]).abs().max())
    if not difference <= tolerance:  # also catches NaN
        raise CheckpointError(f"{folder}: logits differ by {difference:.2g} from those it was saved with")
    return difference
