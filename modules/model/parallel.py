"""The decoder over several devices: which tensor is cut where, and how full tensors get in.

Two meshes, as Lightning's ModelParallelStrategy makes them: "data_parallel" (each group takes a share of a step's rows;
FSDP2 spreads parameters, gradients and optimizer state over it) and "tensor_parallel" (devices of a group share each
matrix: Megatron-LM's plan, Shoeybi et al. 2019, in PyTorch's DTensor). Nothing here communicates by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInputOutput,
    RowwiseParallel,
    parallelize_module,
)

from .decoder import Decoder

if TYPE_CHECKING:
    from ..config.model import ModelConfig

# It advises to merge collectives across the two meshes, which nest the other way round than it would need.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)

MESH = ("data_parallel", "tensor_parallel")
"""Names of the mesh's dimensions, outermost first, as Lightning calls them."""

LAYER_PLAN: dict[str, ParallelStyle] = {
    "attention.query_key_value": ColwiseParallel(),  # rows go head by head: each device gets whole heads
    "attention.dense": RowwiseParallel(),
    "mlp.dense_h_to_4h": ColwiseParallel(),
    "mlp.dense_4h_to_h": RowwiseParallel(),
}

ROOT_PLAN: dict[str, ParallelStyle] = {
    "word_embeddings": RowwiseParallel(input_layouts=Replicate()),  # cut along the vocabulary
    "head": PrepareModuleInputOutput(
        input_layouts=(Replicate(), Shard(0)),
        desired_input_layouts=(Replicate(), Shard(0)),
        output_layouts=Shard(-1),
        desired_output_layouts=Replicate(),
    ),
}


def parallelize(decoder: Decoder, mesh: DeviceMesh, compute: torch.dtype | None = None) -> None:
    """Shards a decoder on the meta device, in place; call `allocate` and then `fill`.

    mesh: its dimensions are named as in MESH. compute: number format that parameters are used in; None: their own.
    """
    tensor_mesh, data_mesh = mesh["tensor_parallel"], mesh["data_parallel"]
    if tensor_mesh.size() > 1:
        parallelize_module(decoder, tensor_mesh, ROOT_PLAN)
        for layer in decoder.transformer.layers:
            parallelize_module(layer, tensor_mesh, LAYER_PLAN)
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=None if compute is None else torch.float32)
    for layer in decoder.transformer.layers:
        fully_shard(layer, mesh=data_mesh, mp_policy=policy)
    fully_shard(decoder, mesh=data_mesh, mp_policy=policy)


def check_tensor_parallel(model: ModelConfig, parts: int) -> None:
    """Raises ValueError where tensor parallelism would cut a head, or leave a device without any token ids."""
    assert model.vocab_size
    if model.num_attention_heads % parts:
        raise ValueError(
            f"trainer.tensor_parallel={parts} doesn't divide the model's {model.num_attention_heads} heads"
        )
    if (parts - 1) * -(-model.vocab_size // parts) >= model.vocab_size:
        raise ValueError(f"trainer.tensor_parallel={parts} leaves devices without any of {model.vocab_size} token ids")


@torch.no_grad()
def fill(decoder: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copies full tensors, or this device's part of each, into a decoder; one full tensor is in memory at a time."""
    parameters = dict(decoder.named_parameters())
    for name, tensor in tensors:
        parameter = parameters.pop(name)
        if isinstance(parameter, DTensor):
            parameter.to_local().copy_(own_part(tensor, parameter))
        else:
            parameter.copy_(tensor)
    assert not parameters, f"no values for {', '.join(parameters)}"


def own_part(tensor: Tensor, like: DTensor) -> Tensor:
    """This device's part of a full tensor: cut by tensor parallelism first, then by FSDP2 (innermost mesh first)."""
    for dimension in reversed(range(like.device_mesh.ndim)):
        placement = like.placements[dimension]
        if placement.is_replicate():
            continue
        parts = tensor.chunk(like.device_mesh.size(dimension), placement.dim)  # type: ignore[attr-defined]
        rank = like.device_mesh.get_local_rank(dimension)
        tensor = parts[rank] if rank < len(parts) else tensor[:0]
    return tensor
