"""A layout over many devices, rehearsed on one machine: shapes on fake tensors, numbers on a narrow model.

The process group is PyTorch's fake one: every collective returns at once, so that one process can play any rank of
any number. What that can't show, the numbers, a narrow model with as many layers shows on a few real processes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from modules.checkpoint.weights import shape_differences
from modules.config.model import ModelConfig
from modules.model.attention import Layout
from modules.model.decoder import Decoder, build_decoder, fresh_tensors, meta_decoder
from modules.model.loss import linear_cross_entropy
from modules.model.parallel import MESH, fill, parallelize
from modules.training.optimizer import gradient_norm, scale_gradients

ROW_CUT = ("query_key_value.weight", "query_key_value.bias", "dense_h_to_4h.weight", "dense_h_to_4h.bias")
COLUMN_CUT = ("attention.dense.weight", "dense_4h_to_h.weight")


@dataclass(frozen=True)
class FakeRun:
    """What one rank of a layout held."""

    shapes: dict[str, tuple[int, ...]]
    """Of its parts of the parameters, by name."""
    gradient_elements: int
    """After a forward and a backward pass."""


def rehearse_shapes(
    model: ModelConfig, data_parallel: int, tensor_parallel: int, ranks: Sequence[int], tokens: int
) -> list[FakeRun]:
    """Plays ranks through forward and backward of `tokens` tokens, without memory or communication.

    Each in a process of its own: DTensor remembers the meshes of a process group beyond its end.
    """
    with ProcessPoolExecutor(len(ranks), multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = [pool.submit(play_rank, model, data_parallel, tensor_parallel, rank, tokens) for rank in ranks]
        return [run.result() for run in runs]


def play_rank(model: ModelConfig, data_parallel: int, tensor_parallel: int, rank: int, tokens: int) -> FakeRun:
    warnings.filterwarnings("ignore")  # of the fake process group, about itself
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    world = data_parallel * tensor_parallel
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    decoder = meta_decoder(model)
    parallelize(decoder, init_device_mesh("cpu", (data_parallel, tensor_parallel), mesh_dim_names=MESH))
    layout = Layout.of([tokens])
    with FakeTensorMode(allow_non_fake_inputs=True):
        decoder.to_empty(device="cpu")
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        decoder(ids, layout, head=partial(first_row_loss, labels=ids[0])).backward()
        shapes = {name: tuple(local(parameter).shape) for name, parameter in decoder.named_parameters()}
        gradients = [local(parameter.grad) for parameter in decoder.parameters() if parameter.grad is not None]
    return FakeRun(shapes, sum(gradient.numel() for gradient in gradients))


def wrong_shapes(model: ModelConfig, data_parallel: int, tensor_parallel: int, tokens: int = 2048) -> list[str]:
    """What the first rank and the last hold otherwise than the closed formula says; nothing where the layout holds."""
    ranks = sorted({0, data_parallel * tensor_parallel - 1})
    wrong = []
    for rank, run in zip(ranks, rehearse_shapes(model, data_parallel, tensor_parallel, ranks, tokens), strict=True):
        expected = expected_shapes(model, data_parallel, tensor_parallel, rank)
        wrong += [f"rank {rank}: {complaint}" for complaint in shape_differences(expected, run.shapes)]
        if run.gradient_elements != elements(expected):
            wrong.append(f"rank {rank}: gradients of {run.gradient_elements:,} elements, not {elements(expected):,}")
    return wrong


def first_row_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return linear_cross_entropy(hidden[0], weight, labels, trained=torch.arange(len(labels)))


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def expected_shapes(
    model: ModelConfig, data_parallel: int, tensor_parallel: int, rank: int
) -> dict[str, tuple[int, ...]]:
    """The closed formula: tensor parallelism cuts rows or columns, then FSDP cuts the rows that are left.

    Cuts are torch.chunk's: parts of ⌈rows / devices⌉, the last ones smaller or empty.
    """
    data_rank, tensor_rank = divmod(rank, tensor_parallel)
    shapes = {}
    for name, parameter in meta_decoder(model).named_parameters():
        shape = list(parameter.shape)
        if name.endswith(ROW_CUT) or name == "word_embeddings.weight":
            shape[0] = part(shape[0], tensor_parallel, tensor_rank)
        elif name.endswith(COLUMN_CUT):
            shape[1] = part(shape[1], tensor_parallel, tensor_rank)
        shape[0] = part(shape[0], data_parallel, data_rank)
        shapes[name] = tuple(shape)
    return shapes


def part(size: int, parts: int, number: int) -> int:
    step = -(-size // parts)
    return max(0, min(step, size - number * step))


def elements(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


# --- numbers ---


def narrow(model: ModelConfig) -> ModelConfig:
    """The same layers and heads, each head two wide, and a small vocabulary that can't be cut evenly."""
    return dataclasses.replace(
        model, hidden_size=2 * model.num_attention_heads, vocab_size=1001, max_position_embeddings=64
    )


def rehearse_numbers(model: ModelConfig, data_parallel: int, tensor_parallel: int, steps: int = 3) -> list[Tensor]:
    """Losses of a few steps on one process, and on data_parallel · tensor_parallel gloo processes: (steps,) each."""
    alone = train(build_decoder(model, seed=0), slice(None), steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (model, data_parallel, tensor_parallel, steps, folder)
        processes = data_parallel * tensor_parallel
        multiprocessing.start_processes(train_rank, arguments, processes, start_method="spawn")
        together = torch.load(Path(folder) / "losses.pt", weights_only=True)
    return [alone, together]


def train_rank(
    rank: int, model: ModelConfig, data_parallel: int, tensor_parallel: int, steps: int, folder: str
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", data_parallel * tensor_parallel)
    dist.init_process_group("gloo", rank=rank, world_size=data_parallel * tensor_parallel, store=store)
    decoder = meta_decoder(model)
    mesh = init_device_mesh("cpu", (data_parallel, tensor_parallel), mesh_dim_names=MESH)
    parallelize(decoder, mesh)
    decoder.to_empty(device="cpu")
    fill(decoder, fresh_tensors(model, seed=0))
    share = slice(mesh.get_local_rank(0), None, data_parallel)
    losses = train(decoder, share, steps, mesh.get_group(0))
    if rank == 0:
        torch.save(losses, f"{folder}/losses.pt")
    dist.destroy_process_group()


def train(decoder: Decoder, share: slice, steps: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Trains on the share of a fixed batch of 8 random texts; returns the whole batch's loss at each step."""
    config = decoder.config
    assert config.vocab_size
    ids = torch.randint(config.vocab_size, (8, 33), generator=torch.Generator().manual_seed(1))
    inputs, labels = ids[share, :-1], ids[share, 1:]
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3, fused=True)
    losses = []
    for _ in range(steps):
        loss = decoder(inputs, head=partial(linear_cross_entropy, labels=labels))
        (loss * (dist.get_world_size(group) if group else 1) / ids[:, 1:].numel()).backward()
        gradients = [parameter.grad for parameter in decoder.parameters() if parameter.grad is not None]
        scale_gradients(gradients, float(gradient_norm(gradients)), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().double()
        if group:
            dist.all_reduce(total, group=group)
        losses.append(total / ids[:, 1:].numel())
    return torch.stack(losses)
