"""ModelScope's GPT-3 from 1.3B up: Megatron's shards, one file a tensor-parallel rank, and a jieba + BPE tokenizer.

The tanh GELU unless bias_gelu_fusion is off; query_key_value's rows go head by head, as in our memory.
(modelscope/models/nlp/gpt3/distributed_gpt3.py)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ...config.model import ModelConfig
from ...system.atomic import write_json
from ...system.bounded_read import read_json_object
from ...tokenizer.tokenizer import Tokenizer
from ...tokenizer.vocabulary import END_OF_TEXT
from ..pickles import read_pickle, write_pickle
from ..weights import CheckpointError, StoredModel, StoredTensor, check_shapes, same_bits, shapes_of
from .architecture import GPT3, renamed
from .modelscope import PREFIXES, config_json, configuration_json, read_architecture, write_modelscope_tokenizer

HOLDABLE = GPT3

THEIR_NAMES = {
    "word_embeddings": "embedding.word_embeddings",
    "position_embeddings": "embedding.position_embeddings",
    "transformer.": "encoder.",
    ".attention.": ".self_attention.",
}
OUR_NAMES = {theirs: ours for ours, theirs in THEIR_NAMES.items()}

Shard = Mapping[str, Tensor]


def cut_dimension(name: str) -> int | None:
    """The dimension along which our tensor `name` is cut among the ranks; None: each rank has all of it."""
    if any(part in name for part in ("word_embeddings", "query_key_value", "dense_h_to_4h")):
        return 0
    return 1 if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")) else None


def shard_path(folder: Path, rank: int) -> Path:
    return folder / "model" / f"mp_rank_{rank:02}_model_states.pt"


def read(folder: Path) -> StoredModel:
    """Raises CheckpointError naming file and tensor where the folder isn't whole and sound.

    That what each rank has whole is the same everywhere is only seen when that tensor is read.
    """
    paths = shard_paths(folder)
    shards = [read_pickle(path, PREFIXES) for path in paths]
    content = read_json_object(folder / "config.json")
    hidden_act: Literal["gelu", "gelu_new"] = "gelu_new" if content.get("bias_gelu_fusion", True) else "gelu"
    config = read_architecture(folder / "config.json", whole_shapes(shards[0], len(shards)), hidden_act)
    check_cuttable(config, len(paths), f"{folder / 'model'}: the number of shards")
    expected = shapes_of(config)
    check_shards(paths, shards, expected)
    return StoredModel(config, {name: joined(name, shape, paths, shards) for name, shape in expected.items()})


def shard_paths(folder: Path) -> list[Path]:
    """Rank by rank. Raises CheckpointError where one is missing, or there are others than configuration.json says."""
    configuration = folder / "configuration.json"
    megatron = read_json_object(configuration).get("megatron")
    said = megatron.get("checkpoint_tensor_model_parallel_size") if isinstance(megatron, dict) else None
    found = len(list((folder / "model").glob("mp_rank_*_model_states.pt")))
    for rank in range(max(found, said if isinstance(said, int) else 1)):
        if not shard_path(folder, rank).is_file():
            raise CheckpointError(f"{shard_path(folder, rank)} is missing; copy it from where the checkpoint came from")
    if said is not None and said != found:
        raise CheckpointError(
            f"{folder / 'model'} holds {found} shards, but {configuration} says "
            f"checkpoint_tensor_model_parallel_size={said}; copy the checkpoint again"
        )
    return [shard_path(folder, rank) for rank in range(found)]


def whole_shapes(first: Shard, parts: int) -> dict[str, tuple[int, ...]]:
    """Our names → shapes of the tensors put together, going by the first shard."""
    shapes = {}
    for theirs, tensor in first.items():
        name, shape = renamed(theirs, OUR_NAMES), list(tensor.shape)
        dimension = cut_dimension(name)
        if dimension is not None and dimension < len(shape):
            shape[dimension] *= parts
        shapes[name] = tuple(shape)
    return shapes


def check_shards(paths: Sequence[Path], shards: Sequence[Shard], whole: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError where a shard hasn't just its part of every tensor, in the number format of the others."""
    expected = {renamed(name, THEIR_NAMES): part_shape(name, shape, len(shards)) for name, shape in whole.items()}
    for path, shard in zip(paths, shards, strict=True):
        check_shapes(path, "config.json", expected, shard)
        for name in expected:
            if shard[name].dtype != shards[0][name].dtype:
                raise CheckpointError(
                    f"{path}: {name} is {shard[name].dtype}, but {shards[0][name].dtype} in {paths[0].name}"
                )


def part_shape(name: str, shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    dimension = cut_dimension(name)
    if dimension is None:
        return shape
    return (*shape[:dimension], shape[dimension] // parts, *shape[dimension + 1 :])


def joined(name: str, shape: tuple[int, ...], paths: Sequence[Path], shards: Sequence[Shard]) -> StoredTensor:
    theirs = renamed(name, THEIR_NAMES)
    parts = [shard[theirs] for shard in shards]
    dimension = cut_dimension(name)

    def read_whole() -> Tensor:
        if len(parts) > 1 and dimension is not None:
            return torch.cat(parts, dimension)
        for path, part in zip(paths[1:], parts[1:], strict=True):
            if not same_bits(part, parts[0]):
                raise CheckpointError(
                    f"{path}: {theirs} differs from that in {paths[0].name}, though every rank has it whole; "
                    "the shards are of different checkpoints"
                )
        return parts[0]

    return StoredTensor(shape, parts[0].dtype, read_whole)


def write(folder: Path, model: StoredModel, tokenizer: Tokenizer, tensor_parallel: int = 1) -> None:
    """Writes a file a rank, one at a time. Raises CheckpointError where `tensor_parallel` can't cut the model."""
    check_cuttable(model.config, tensor_parallel, "tensor_parallel")
    (folder / "model").mkdir()
    for rank in range(tensor_parallel):
        write_pickle(shard_path(folder, rank), {"module": shard_of(model, rank, tensor_parallel)})
    vocab = write_modelscope_tokenizer(folder, tokenizer)
    config = config_json(model, tokenizer)
    # Not what ends a text there: ModelScope fills rows up with it, and cuts what was generated at <sep>.
    config["eod_id"] = vocab.get(END_OF_TEXT, config["eod_id"])
    config["bias_gelu_fusion"] = model.config.hidden_act == "gelu_new"
    write_json(folder / "config.json", config)
    length = model.config.max_position_embeddings
    configuration = configuration_json("text-gen-jieba-tokenizer", "gpt3-generation", length)
    sizes = ("checkpoint_tensor_model_parallel_size", "world_size", "tensor_model_parallel_size")
    configuration["megatron"] = dict.fromkeys(sizes, tensor_parallel)
    write_json(folder / "configuration.json", configuration)


def check_cuttable(config: ModelConfig, parts: int, place: str) -> None:
    """Raises CheckpointError unless ranks get whole heads (which divide all widths) and equal shares of the ids."""
    for name in ("num_attention_heads", "vocab_size"):
        if getattr(config, name) % parts:
            common = math.gcd(config.num_attention_heads, config.vocab_size or 0)
            would_do = ", ".join(str(number) for number in range(1, parts + 1) if common % number == 0)
            raise CheckpointError(
                f"{place} ({parts}) must divide {name} ({getattr(config, name)}); "
                f"up to {parts} these would do: {would_do}"
            )


def shard_of(model: StoredModel, rank: int, parts: int) -> dict[str, Tensor]:
    """What a rank holds: of cut tensors copies, as views would keep all of them in memory until they are written."""
    shard = {}
    for name, stored in model.weights.items():
        tensor, dimension = stored.read(), cut_dimension(name)
        if dimension is not None and parts > 1:
            tensor = tensor.chunk(parts, dimension)[rank].clone()
        shard[f"language_model.{renamed(name, THEIR_NAMES)}"] = tensor
    return shard
