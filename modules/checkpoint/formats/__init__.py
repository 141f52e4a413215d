"""Checkpoints of other tools, in and out. Each format is a module here with the same names in it:

read(folder) → weights.StoredModel, strict and still on disk; write(folder, model, tokenizer) fills an empty folder;
HOLDABLE: what of an architecture can be written. GGUF is only written; training checkpoints are only read, by
../training_checkpoint.py.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ...system.bounded_read import read_json_object
from ...tokenizer.tokenizer import Tokenizer
from ..weights import CheckpointError, StoredModel
from .architecture import Holdable, other_weights, unknown_options

FORMATS = {
    "huggingface": ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin"),
    "modelscope": ("pytorch_model.bin",),
    "megatron": ("model/mp_rank_*_model_states.pt",),
    "training_checkpoint": ("*.distcp",),
    "gguf": ("model.gguf",),
}
"""Format → the weight files to read: the first of these patterns that finds any."""

METADATA = ".metadata"
"""The file of PyTorch's distributed format (DCP) that makes a folder a training checkpoint."""

WRITTEN = ("huggingface", "modelscope", "megatron", "gguf")


def module_of(name: str) -> Any:
    # Each when it is asked for: PyTorch's code for training checkpoints alone takes half a second to import.
    return import_module(f"..{name}" if name == "training_checkpoint" else f".{name}", __package__)


def is_training_checkpoint(folder: Path) -> bool:
    return (folder / METADATA).is_file()


def format_of(folder: Path) -> str:
    """moyun, or the name of another format, by what its configuration files say; moyun where there are none."""
    if is_training_checkpoint(folder):
        return "training_checkpoint"
    if (folder / "model.gguf").is_file():
        return "gguf"
    config = read_json_object(folder / "config.json")
    if (folder / "model.yaml").is_file() or not config:
        return "moyun"
    if "megatron" in read_json_object(folder / "configuration.json"):
        return "megatron"
    return "modelscope" if config.get("model_type", "gpt3") == "gpt3" else "huggingface"


def files_of_format(folder: Path, name: str) -> list[Path]:
    """The files that a format's weights lie in, in order. Raises CheckpointError where there are none."""
    for pattern in FORMATS[name]:
        if files := sorted(folder.glob(pattern)):
            return files
    raise CheckpointError(f"{folder} ({name}): {' or '.join(FORMATS[name])} is missing; copy it again")


def read(folder: Path, name: str) -> StoredModel:
    """A checkpoint of another format. Raises CheckpointError naming file and tensor where it isn't whole and sound."""
    model: StoredModel = module_of(name).read(folder)
    for parameter, tensor in model.weights.items():
        if not tensor.dtype.is_floating_point:
            files = ", ".join(str(path.relative_to(folder)) for path in files_of_format(folder, name))
            raise CheckpointError(f"{folder} ({files}): {parameter} holds {tensor.dtype}, not real numbers")
    return model


def write(folder: Path, name: str, model: StoredModel, tokenizer: Tokenizer, **options: Any) -> list[str]:
    """Fills an empty folder with a model in one of the formats WRITTEN; returns notes for whoever exports.

    options are the format's own. Raises CheckpointError, before anything is written, where it can't hold the model.
    """
    check_holdable(model, name)
    notes: list[str] | None = module_of(name).write(folder, model, tokenizer, **options)
    return notes or []


def check_holdable(model: StoredModel, name: str) -> None:
    """Raises CheckpointError naming all of a model's options, or all of its weights, that a format has no place for."""
    holdable: dict[str, Holdable] = {format_name: module_of(format_name).HOLDABLE for format_name in WRITTEN}
    if options := ", ".join(unknown_options(model.config, holdable[name])):
        others = [f"format={other}" for other in WRITTEN if not any(unknown_options(model.config, holdable[other]))]
        raise CheckpointError(
            f"a model with {options} can't be written as format={name}, which would compute other answers; choose "
            + (" or ".join(others) or "moyun's own format")
        )
    if weights := ", ".join(other_weights(model.weights)):
        raise CheckpointError(f"format={name} holds GPT-3's weights alone, and this model's are others: {weights}")
