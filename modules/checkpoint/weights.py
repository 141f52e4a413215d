"""Weights on disk, read a tensor at a time: safetensors files, one or several with an index (Hugging Face's layout).

A model may be larger than memory: what is read is mapped from the file, and what is written goes out shard by shard.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config.model import ModelConfig
from ..model.decoder import meta_decoder
from ..system.atomic import error_of_the_machine
from ..system.bounded_read import read_json
from ..system.checksums import sha256_of
from ..system.paths import require_regular

SHARD_BYTES = 5_000_000_000
QKV = "query_key_value"


class CheckpointError(ValueError):
    """Weights or a model folder that is incomplete, damaged or of another shape than it says."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that stays on disk until `read` is called."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """On the CPU, mapped from the file where the format allows it."""

    def map(self, function: Callable[[Tensor], Tensor]) -> StoredTensor:
        """The same with `function` on what is read (shape and dtype worked out on the meta device)."""
        result = function(torch.empty(self.shape, dtype=self.dtype, device="meta"))
        return StoredTensor(tuple(result.shape), result.dtype, lambda: function(self.read()))


StoredWeights = Mapping[str, StoredTensor]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class StoredModel:
    """A model at rest: its architecture, and its tensors by the decoder's names with query_key_value head by head."""

    config: ModelConfig
    weights: StoredWeights


def in_dtype(model: StoredModel, dtype: torch.dtype) -> StoredModel:
    """The model in another number format; reading raises CheckpointError where a number is too large for it."""
    return StoredModel(model.config, {name: cast(name, tensor, dtype) for name, tensor in model.weights.items()})


def cast(name: str, tensor: StoredTensor, dtype: torch.dtype) -> StoredTensor:
    def read() -> Tensor:
        found = tensor.read()
        result = found.to(dtype)
        if not torch.equal(result.isfinite(), found.isfinite()):
            raise CheckpointError(f"{name} holds numbers too large for {dtype}; choose dtype=bfloat16 or float32")
        return result

    return StoredTensor(tensor.shape, dtype, read)


def stored(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """Tensors in memory as StoredTensors."""
    return {name: StoredTensor(tuple(t.shape), t.dtype, lambda t=t: t) for name, t in tensors.items()}  # type: ignore[misc]


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, still on disk. Raises CheckpointError naming a damaged file."""
    try:
        require_regular(path)
        file = safe_open(path, "pt")
        return {name: stored_slice(path, file, name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy it again from where it came from") from error


def stored_slice(path: Path, file: safe_open, name: str) -> StoredTensor:
    part = file.get_slice(name)
    # An empty slice tells the dtype without touching the data.
    dtype = part[:0].dtype if part.get_shape() else file.get_tensor(name).dtype
    # Opened anew each time: a tensor then keeps its own part of the file mapped, and gives it back when it goes.
    return StoredTensor(tuple(part.get_shape()), dtype, lambda: safe_open(path, "pt").get_tensor(name))


def safetensors_files(folder: Path) -> list[Path]:
    """`files_or_shards` of model.safetensors."""
    return files_or_shards(folder, "model.safetensors")


def files_or_shards(folder: Path, single_name: str) -> list[Path]:
    """The file of that name, or the shards that its .index.json lists. Raises CheckpointError for a missing one."""
    single, index = folder / single_name, folder / f"{single_name}.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(f"{folder}: {single.name} (or {index.name} with its shards) is missing")
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("it names no files")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged: no weight_map in it ({error}); copy it again") from error
    files = [folder / name for name in names]
    for path in files:
        if path.parent != folder or not path.is_file():
            raise CheckpointError(f"{folder}: {path.name} is missing, but {index.name} lists it; copy it again")
    return files


def read_weights(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder's safetensors files."""
    return read_files(safetensors_files(folder), read_safetensors)


def read_files(files: Iterable[Path], read: Callable[[Path], StoredWeights]) -> dict[str, StoredTensor]:
    """All tensors of some files; CheckpointError for a name that stands in two of them."""
    weights: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in read(path).items():
            if name in weights:
                raise CheckpointError(f"{path}: {name} stands in another file too")
            weights[name] = tensor
    return weights


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file, readable as the umask says (safetensors 0.8 lets its owner alone). Raises OSError."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        found = error_of_the_machine(error) or OSError(errno.EIO, str(error))
        raise OSError(found.errno, f"the weights could not be written: {found.strerror}", str(path)) from error
    path.chmod(mode)


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Writes model.safetensors, or shards of at most shard_bytes with an index; one shard is in memory at a time."""
    shards: dict[Path, list[str]] = {}
    total = 0
    for shard in in_shards(tensors, shard_bytes):
        path = folder / f"model-{len(shards) + 1:05}.safetensors.part"
        save_tensors(shard, path, {"format": "pt"})
        shards[path] = list(shard)
        total += sum(tensor.nbytes for tensor in shard.values())
        del shard  # or it would stay in memory while the next one is read
    if len(shards) == 1:
        return [path.rename(folder / "model.safetensors") for path in shards]
    files = [path.rename(folder / f"model-{n:05}-of-{len(shards):05}.safetensors") for n, path in enumerate(shards, 1)]
    weight_map = {name: path.name for path, inside in zip(files, shards.values(), strict=True) for name in inside}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return files


def in_shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    yield shard


def weights_hash(folder: Path) -> str:
    """`files_hash` of a model folder's safetensors files."""
    return files_hash(safetensors_files(folder))


def files_hash(files: Iterable[Path]) -> str:
    """SHA-256 of a file; of several files, the SHA-256 of their hashes in order."""
    digests = [sha256_of(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and number format are equal; NaN equals NaN, and 0 isn't -0."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def blocks_to_heads(rows: Tensor, heads: int) -> Tensor:
    """query_key_value's rows from three blocks (all Q, all K, all V) to heads with (q, k, v) in each: (3·C, …)."""
    heads_of: Tensor = rows.unflatten(0, (3, heads, -1))
    return heads_of.transpose(0, 1).flatten(0, 2)


def heads_to_blocks(rows: Tensor, heads: int) -> Tensor:
    """The inverse of blocks_to_heads."""
    blocks: Tensor = rows.unflatten(0, (heads, 3, -1))
    return blocks.transpose(0, 1).flatten(0, 2)


def qkv_interleaved(name: str, tensor: StoredTensor, heads: int) -> StoredTensor:
    """A tensor of a format with blocks, as the decoder has it."""
    return tensor.map(lambda rows: blocks_to_heads(rows, heads)) if QKV in name else tensor


def qkv_blocked(name: str, tensor: Tensor, heads: int) -> Tensor:
    """The decoder's tensor, as a format with blocks has it."""
    return heads_to_blocks(tensor, heads) if QKV in name else tensor


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of the decoder's tensors, in its order. Raises CheckpointError where vocab_size isn't given."""
    if config.vocab_size is None:
        raise CheckpointError("the model's configuration says no vocab_size; copy it again from where it came from")
    return {name: tuple(tensor.shape) for name, tensor in meta_decoder(config).state_dict().items()}


def check_shapes(
    place: object, described_by: object, expected: Shapes, found: Mapping[str, StoredTensor | Tensor]
) -> None:
    """Raises CheckpointError naming `place` and the tensors there that aren't what `described_by` says."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if complaints := list(shape_differences(expected, shapes)):
        more = f" and {len(complaints) - 5} more" if len(complaints) > 5 else ""
        raise CheckpointError(f"{place} doesn't fit {described_by}: " + "; ".join(complaints[:5]) + more)


def shape_differences(expected: Shapes, found: Shapes) -> Iterator[str]:
    """A complaint for each tensor that is missing, unknown or misshapen."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"{name} is missing"
        elif name not in expected:
            yield f"{name} is not part of this architecture"
        elif expected[name] != found[name]:
            yield f"{name} is {found[name]}, not {expected[name]}"
