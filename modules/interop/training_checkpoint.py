"""A checkpoint of training (strategies.py) as a model: PyTorch's distributed format, written by any number of devices.

model.yaml and the tokenizer lie in the folder above, once for all checkpoints of a run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ..config import load_model_config
from ..file_list import FILE_LIST, damage
from ..weights import CheckpointError, StoredModel, StoredTensor, StoredWeights, differences, shapes_of
from .safe_dcp import SafeReader, load_state

PREFIX = "model.decoder."


def read(folder: Path) -> StoredModel:
    """Raises CheckpointError where the run's model.yaml is missing or doesn't fit, as with adapters alone."""
    path = folder.parent / "model.yaml"
    if not path.is_file():
        raise CheckpointError(f"{folder} is a training checkpoint, but {path} is missing; copy the whole run's folder")
    config = load_model_config(path)
    weights = trained_weights(folder)
    if any(name.endswith("lora_a") for name in weights):
        raise CheckpointError(f"{folder} holds adapters alone: go on from it with train.resume_from")
    complaints = list(differences(shapes_of(config), {name: tensor.shape for name, tensor in weights.items()}))
    if complaints:
        raise CheckpointError(f"{folder} doesn't fit {path}: " + "; ".join(complaints[:5]))
    require_sound(folder)
    return StoredModel(config, weights)


def require_sound(folder: Path) -> None:
    """CheckpointError where files aren't what was written; before there was a list of them, nobody can tell."""
    if (folder / FILE_LIST).exists() and (wrong := damage(folder)):
        raise CheckpointError(f"{folder} is damaged ({wrong}); take another checkpoint")


def trained_weights(folder: Path) -> StoredWeights:
    """The decoder's parameters in a checkpoint, each put together from its parts when it is read."""
    metadata = SafeReader(folder).read_metadata().state_dict_metadata
    return {
        name.removeprefix(PREFIX): stored_tensor(folder, name, tensor)
        for name, tensor in metadata.items()
        if name.startswith(PREFIX) and isinstance(tensor, TensorStorageMetadata)
    }


def stored_tensor(folder: Path, name: str, metadata: TensorStorageMetadata) -> StoredTensor:
    def read() -> Tensor:
        tensor = torch.empty(metadata.size, dtype=metadata.properties.dtype)
        load_state({name: tensor}, folder, no_dist=True)
        return tensor

    return StoredTensor(tuple(metadata.size), metadata.properties.dtype, read)
