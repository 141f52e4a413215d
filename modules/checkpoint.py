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
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import interop
from .config import ModelConfig, load_model_config, to_yaml
from .decoder import Decoder, init_parameter
from .drafts import draft_of, remove_abandoned
from .inference import prepare_for_inference
from .tokenizer import Tokenizer, load_tokenizer
from .verification import golden_difference, require_unchanged, write_golden
from .weights import (
    CheckpointError,
    StoredModel,
    differences,
    in_blocks,
    in_heads,
    meta_decoder,
    read_weights,
    safetensors_files,
    shapes_of,
    write_weights,
)

FILES = ("golden.safetensors", "model.yaml", "run.yaml", "tokenizer.json", "tokenizer_config.json")
"""What a model folder holds beside its weights."""


def build_decoder(config: ModelConfig, seed: int) -> Decoder:
    """Fresh weights, laid out on the meta device first so that they are written once."""
    decoder = meta_decoder(config)
    decoder.to_empty(device="cpu")
    decoder.init_weights(torch.Generator().manual_seed(seed))
    return decoder


def fresh_tensors(config: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """build_decoder's weights one by one: for a decoder that is spread over devices."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in meta_decoder(config).named_parameters():
        tensor = torch.empty(parameter.shape)
        init_parameter(name, tensor, config, generator)
        yield name, tensor


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
    with new_folder(folder, "a model folder") as draft:
        heads = config.num_attention_heads
        write_weights(draft, ((name, in_blocks(name, tensor, heads)) for name, tensor in tensors))
        write_architecture(draft, config)
        (draft / "run.yaml").write_text(to_yaml(run), encoding="utf-8")
        tokenizer.save(draft)
        write_golden(draft, read_model(draft), tokenizer)
    return folder


def write_architecture(folder: Path, config: ModelConfig) -> None:
    """model.yaml; of a SizeConfig the architecture alone."""
    architecture = {name: getattr(config, name) for name in ModelConfig.__dataclass_fields__}
    (folder / "model.yaml").write_text(to_yaml(architecture), encoding="utf-8")


@contextmanager
def new_folder(folder: Path, what: str) -> Iterator[Path]:
    """A folder under a temporary name, to write to; then it is synced to disk and renamed, or removed if that fails.

    Raises FileExistsError rather than overwrite; `what` stands in its message.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; {what} is never overwritten: choose another name")
    draft = draft_of(folder)
    remove_abandoned(folder.parent)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for path in [*draft.rglob("*"), draft]:
            sync(path)
        draft.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def default_device() -> torch.device:
    """The accelerator, where there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def require_folder(folder: Path) -> None:
    """CheckpointError for what can't be a model folder, of whatever format."""
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that it lies in")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder; a registered model is models:/NAME@ALIAS")
    if not any(folder.iterdir()):
        raise CheckpointError(f"{folder} is empty, and no model folder")


def open_model(folder: str | Path) -> StoredModel:
    """A model folder's architecture and weights, still on disk; Hugging Face's and ModelScope's folders will do.

    Raises CheckpointError for what it lacks.
    """
    folder = Path(folder)
    require_folder(folder)
    if (foreign := interop.format_of(folder)) != "moyun":
        return interop.read(folder, foreign)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        hint = "; nor has it a config.json, as other formats do" if "model.yaml" in missing else ""
        if checkpoints := sorted(folder.glob("*.ckpt")):
            hint = f"; one of its checkpoints would do: {checkpoints[-1]}"
        raise CheckpointError(f"{folder} is no complete model folder: {', '.join(missing)} missing{hint}")
    return read_model(folder)


def read_model(folder: Path) -> StoredModel:
    config = load_model_config(folder / "model.yaml")
    weights = read_weights(folder)
    complaints = list(differences(shapes_of(config), {name: tensor.shape for name, tensor in weights.items()}))
    if complaints:
        file = safetensors_files(folder)[0] if len(safetensors_files(folder)) == 1 else folder
        raise CheckpointError(f"{file} doesn't fit model.yaml: " + "; ".join(complaints[:5]))
    heads = config.num_attention_heads
    return StoredModel(config, {name: in_heads(name, tensor, heads) for name, tensor in weights.items()})


def load_model(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Decoder:
    """A model folder's decoder in eval mode, by default in the number format that it is stored in.

    Raises CheckpointError naming what is missing, extra or misshapen.
    """
    model = open_model(folder)
    decoder = meta_decoder(model.config)
    weights = {name: tensor.read().to(device, dtype) for name, tensor in model.weights.items()}
    decoder.load_state_dict(weights, strict=True, assign=True)
    return decoder.requires_grad_(True).eval()


def load_for_inference(folder: str | Path, dtype: str = "auto") -> Decoder:
    """A decoder to read from, on the accelerator where there is one; on a CPU laid out for speed (inference.py).

    dtype: float32, bfloat16, int8 (on a CPU: weights and products in 8 bits, the rest in float32), or auto: as it is
    stored, but float32 for float16 on a CPU, where it is slow and coarse.
    """
    device = default_device()
    if dtype not in ("auto", "float32", "bfloat16", "int8"):
        raise ValueError(f"dtype={dtype} must be auto, float32, bfloat16 or int8")
    on_cpu = device.type == "cpu"
    if dtype == "int8" and not on_cpu:
        raise ValueError(f"dtype=int8 is for CPUs, but this process uses {device}; use dtype=bfloat16 there")
    if dtype in ("auto", "int8"):
        stored = reduce(torch.promote_types, {tensor.dtype for tensor in open_model(folder).weights.values()})
        number_format = torch.float32 if stored == torch.float16 and on_cpu and dtype == "auto" else stored
    else:
        number_format = getattr(torch, dtype)
    decoder = load_model(folder, device, number_format)
    return prepare_for_inference(decoder, dtype == "int8") if on_cpu else decoder


def load_verified(folder: Path, dtype: str = "auto") -> tuple[Decoder, Tokenizer]:
    """`load_for_inference` with the tokenizer; CheckpointError where either isn't what was saved."""
    require_folder(folder)
    tokenizer = load_tokenizer(folder)
    require_unchanged(folder, tokenizer)
    return load_for_inference(folder, dtype), tokenizer


def verify_model(folder: str | Path, tolerance: float = 1e-3) -> float:
    """Recomputes the golden logits and returns the largest difference; CheckpointError where it is too large.

    One prompt doesn't touch every weight and token, so their hashes are compared too.
    """
    folder = Path(folder)
    model, tokenizer = open_model(folder), load_tokenizer(folder)
    if (foreign := interop.format_of(folder)) != "moyun":
        raise CheckpointError(
            f"{folder} is a {foreign} checkpoint, with nothing to verify it by; make a moyun folder of it first: "
            f"python -m pipelines.convert source={folder} target=NEW_FOLDER"
        )
    require_unchanged(folder, tokenizer)
    difference = golden_difference(folder, model, tokenizer)
    if not difference <= tolerance:  # also catches NaN
        raise CheckpointError(f"{folder}: logits differ by {difference:.2g} from those it was saved with")
    return difference
