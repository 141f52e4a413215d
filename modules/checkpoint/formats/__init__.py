"""Other people's checkpoints, in and out. Each format is a module here with the same two functions:

read(folder) → weights.StoredModel, strict and still on disk; write(folder, model, tokenizer) fills an empty folder.
Training's own checkpoints are a format too, which is only read; GGUF is one that is only written.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ...system.bounded_read import read_json_object
from ...tokenizer.pretrained import TRAINING_METADATA as METADATA
from ...tokenizer.tokenizer import Tokenizer
from .. import dcp
from ..weights import CheckpointError, StoredModel

FORMATS = {
    "huggingface": ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin"),
    "modelscope": ("pytorch_model.bin",),
    "megatron": ("model/mp_rank_*_model_states.pt",),
    "training_checkpoint": ("*.distcp",),
    "gguf": ("model.gguf",),
}
"""Format, which is its module's name too (but training checkpoints: dcp.py) → the weight files to read: the first of
these patterns that finds any."""


def format_of(folder: Path) -> str:
    """moyun, or the name of another format, by what its configuration files say; moyun where there are none."""
    if (folder / METADATA).is_file():
        return "training_checkpoint"
    if (folder / "model.gguf").is_file():
        return "gguf"
    config = read_json_object(folder / "config.json")
    if (folder / "model.yaml").is_file() or not config:
        return "moyun"
    if "megatron" in read_json_object(folder / "configuration.json"):
        return "megatron"
    return "modelscope" if config.get("model_type", "gpt3") == "gpt3" else "huggingface"


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files that a format's weights lie in, in order. Raises CheckpointError where there are none."""
    for pattern in FORMATS[name]:
        if files := sorted(folder.glob(pattern)):
            return files
    raise CheckpointError(f"{folder} ({name}): {' or '.join(FORMATS[name])} is missing; copy it again")


def read(folder: Path, name: str) -> StoredModel:
    """A checkpoint of another format. Raises CheckpointError naming file and tensor where it isn't whole and sound."""
    model: StoredModel = (dcp if name == "training_checkpoint" else import_module(f".{name}", __package__)).read(folder)
    for parameter, tensor in model.weights.items():
        if not tensor.dtype.is_floating_point:
            files = ", ".join(str(path.relative_to(folder)) for path in weight_files(folder, name))
            raise CheckpointError(f"{folder} ({files}): {parameter} holds {tensor.dtype}, not real numbers")
    return model


def write(folder: Path, name: str, model: StoredModel, tokenizer: Tokenizer, **options: Any) -> list[str]:
    """Fills an empty folder; returns what a user should know of it. CheckpointError for what a format cannot hold."""
    return import_module(f".{name}", __package__).write(folder, model, tokenizer, **options) or []
