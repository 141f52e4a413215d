"""Training checkpoints, in PyTorch's distributed format (DCP), read without running pickled code (DCP's reader would).

A checkpoint may have been written by any number of devices; model.yaml and the tokenizer lie in the folder above.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from ..config.loader import load_model_config
from ..system.checksums import FILE_LIST, damage
from ..system.redaction import first_line
from .formats import METADATA
from .weights import CheckpointError, StoredModel, StoredTensor, StoredWeights, check_shapes, shapes_of

DCP = "torch.distributed.checkpoint"

METADATA_CLASSES = (
    "BytesStorageMetadata ChunkStorageMetadata Metadata MetadataIndex StorageMeta TensorProperties "
    "TensorStorageMetadata _MEM_FORMAT_ENCODING"
)

ALLOWED = {
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath")),
    *("collections.OrderedDict", "torch.Size", "torch.serialization._get_layout", f"{DCP}.filesystem._StorageInfo"),
    *(f"{DCP}.metadata.{name}" for name in METADATA_CLASSES.split()),
    *(f"torch.{name}" for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")),
}
"""The classes that METADATA is made of."""


class MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, and loading that could run code")
        return super().find_class(module, name)


class SafeReader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / METADATA
        try:
            with path.open("rb") as file:
                metadata = MetadataUnpickler(file).load()
            if not isinstance(metadata, Metadata):
                raise ValueError(f"it holds a {type(metadata).__name__}")
            check_metadata(Path(self.path), metadata)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path.parent} is no training checkpoint: {METADATA} is missing") from error
        except Exception as error:  # whatever a damaged pickle makes the unpickler stumble over
            raise CheckpointError(f"{path} was not loaded: {error}; take another checkpoint") from error
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def check_metadata(folder: Path, metadata: Metadata) -> None:
    """Raises ValueError where parts lie outside the folder's files, or a tensor is larger than all files together."""
    for part in metadata.storage_data.values():
        file = folder / part.relative_path
        if file.parent != folder or not file.is_file() or not 0 <= part.offset <= file.stat().st_size - part.length:
            raise ValueError(f"it names bytes that {part.relative_path} doesn't hold")
    there = sum(path.stat().st_size for path in folder.glob("*.distcp"))
    for name, item in metadata.state_dict_metadata.items():
        if isinstance(item, TensorStorageMetadata) and math.prod(item.size) * item.properties.dtype.itemsize > there:
            raise ValueError(f"{name} is larger than all files")


class SafePlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Values that aren't tensors, such as a learning rate: PyTorch would unpickle anything; they are cleaned."""
        clean = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), clean)
        clean.seek(0)
        super().load_bytes(read_item, clean)


def load_state(state: dict[str, Any], folder: Path, no_dist: bool) -> None:
    """Fills `state` in place; each process of a job takes its part unless no_dist. Raises CheckpointError."""
    try:
        dcp.load(state, storage_reader=SafeReader(folder), planner=SafePlanner(), no_dist=no_dist)
    except (CheckpointException, pickle.UnpicklingError) as error:
        raise_if_stopped(error)
        reason = first_line((reasons_of(error) or [error])[0])
        raise CheckpointError(
            f"{folder} can't be loaded, as a checkpoint of another model or a damaged one: {reason}"
        ) from error


def raise_if_stopped(error: BaseException) -> None:
    """Raises the exception of a signal, which DCP reports as if it were a fault of the checkpoint."""
    for reason in reasons_of(error):
        if isinstance(reason, SystemExit | KeyboardInterrupt):
            raise reason


def reasons_of(error: BaseException) -> list[BaseException]:
    """What went wrong in each process, out of DCP's (exception, traceback) pairs."""
    failures = error.failures.values() if isinstance(error, CheckpointException) else ()
    return [failure[0] if isinstance(failure, tuple) else failure for failure in failures]


PREFIX = "model.decoder."


def read(folder: Path) -> StoredModel:
    """The model in a training checkpoint. Raises CheckpointError where model.yaml above it is missing or of another."""
    path = folder.parent / "model.yaml"
    if not path.is_file():
        raise CheckpointError(f"{folder} is a training checkpoint, but {path} is missing; copy the whole run's folder")
    config = load_model_config(path)
    weights = trained_weights(folder)
    if any(name.endswith("lora_a") for name in weights):
        raise CheckpointError(f"{folder} holds adapters alone: go on from it with train.resume_from")
    check_shapes(folder, path, shapes_of(config), weights)
    check_undamaged(folder)
    return StoredModel(config, weights)


def check_undamaged(folder: Path) -> None:
    """Raises CheckpointError where files aren't what was written; older checkpoints have no list to check them by."""
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
