"""Other people's .bin and .pt files: pickles, of which nothing but tensors is ever loaded."""

from __future__ import annotations

import errno
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..system.atomic import error_of_the_machine
from ..system.redaction import first_line
from .weights import CheckpointError

GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_pickle(path: Path, prefixes: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """A state dict, out of its nesting, without the first of `prefixes` that all names have.

    Mapped from the file; read into memory where it is older than PyTorch 1.6's zip files.
    Raises CheckpointError for a damaged file, and for one that holds more than tensors: it runs nothing of it.
    """
    tensors = load(path)
    for nesting in ("module", "state_dict"):  # what training frameworks wrap it in, beside bookkeeping of their own
        if isinstance(tensors, dict) and isinstance(tensors.get(nesting), dict):
            tensors = tensors[nesting]
            break
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} holds no state dict but a {type(tensors).__name__}; save model.state_dict()")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not usable(tensor):
            raise CheckpointError(f"{path}: {name} is no tensor; save model.state_dict() alone")
    shared = next((prefix for prefix in prefixes if all(str(name).startswith(prefix) for name in tensors)), "")
    return {str(name).removeprefix(shared): tensor for name, tensor in tensors.items()}


def load(path: Path) -> Any:
    """What torch.load makes of it. weights_only is given, so no environment variable can take it back."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy it from where the folder came from")
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            check_not_packed(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        called = GLOBAL.search(str(error))
        if called:
            raise CheckpointError(
                f"{path} was not loaded: beside tensors it holds {called[1]}, and loading that could run code. "
                "Ask its author for safetensors, or for a file of model.state_dict() alone"
            ) from error
        raise CheckpointError(f"{path} is damaged, or more than tensors: {first_line(error)}; copy it again") from error
    except MemoryError:  # of the machine, not of the file
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # which is how PyTorch's reader complains of a cut archive
            raise
        raise CheckpointError(f"{path} is damaged: no complete file of PyTorch's; copy it again") from error
    except Exception as error:  # whatever a damaged pickle makes the unpickler stumble over
        raise CheckpointError(f"{path} is damaged: {first_line(error)}; copy it again") from error


def check_not_packed(path: Path) -> None:
    """ValueError for an archive that would unfold: PyTorch's own hold everything as it is."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
    if packed or sum(part.file_size for part in parts) > path.stat().st_size:
        raise ValueError(f"{packed[0] if packed else 'what it holds'} is packed, which no file of PyTorch's is")


def usable(tensor: Tensor) -> bool:
    """A plain tensor that is no larger than what is stored of it: strides of 0 make terabytes of one number."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and tensor.nbytes <= tensor.untyped_storage().nbytes()


def write_pickle(path: Path, content: Mapping[str, Any]) -> None:
    """torch.save of a state dict, or of one in a nesting; each tensor takes just its own size in the file."""
    write_stream(path, {name: alone(value) for name, value in content.items()})


def write_stream(path: Path, content: Any) -> None:
    """torch.save, but an OSError says why it can't be written: that of the stream, which torch hides."""
    try:
        with path.open("wb") as stream:
            torch.save(content, stream)
    except (RuntimeError, OSError) as error:  # OSError: when the stream is closed
        found = error_of_the_machine(error) or OSError(errno.EIO, str(error))
        raise OSError(found.errno, found.strerror, str(path)) from error


def alone(value: Any) -> Any:
    """A tensor on a storage of its own size, since torch.save writes storages whole: a mapped one is a whole file.

    No copy is made of a tensor that lies in one piece.
    """
    if not isinstance(value, Tensor):
        return {name: alone(part) for name, part in value.items()}
    tensor = value.detach().contiguous()
    start = tensor.storage_offset() * tensor.element_size()
    storage = tensor.untyped_storage()[start : start + tensor.nbytes]
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())
