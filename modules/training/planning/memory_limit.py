"""Does a training run fit its device? If not: the least costly change of configuration with which it does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ...config.model import ModelConfig
from ...config.training import TrainerConfig
from ...system.hardware import chosen_device, give_freed_memory_back
from .memory import StepMemory, TrainingMemory

GIB, MIB = 2**30, 2**20

CPU_SHARE = 2 / 3
"""Of free RAM: malloc's gaps and the libraries' buffers take up to half as much again as tensors do (docs/sizes.md)."""

GPU_SHARE = 0.92
"""Of free GPU memory: cuBLAS, NCCL and attention's backward pass take some too, and the allocator leaves gaps."""

CPU_TOKENS = 2048
"""Of a pass on a CPU, which more tokens make no faster."""

GPU_TOKENS = 2**16
"""Of a pass on a GPU at most: nothing is gained beyond."""

MOST_DEVICES = 4096
DEVICES_A_MACHINE = 8


@dataclass(frozen=True)
class MemoryDemand:
    """All that a step's memory depends on; `replace` asks what another configuration would need."""

    model: ModelConfig
    trainer: TrainerConfig
    lengths: np.ndarray
    """Tokens of each training document, longest first."""
    batch_size: int | None
    batch_tokens: int | None
    micro_batch_tokens: int
    adapter_parameters: int | None = None
    optimizer: str = "adamw"

    def memory(self) -> TrainingMemory:
        share = self.largest_share()
        lengths = largest_micro_batch(self.lengths, min(share, self.micro_batch_tokens))
        accumulates = share > self.micro_batch_tokens
        adapters, optimizer = self.adapter_parameters, self.optimizer
        return StepMemory(self.model, self.trainer, lengths, accumulates, adapters, optimizer).memory()

    def largest_share(self) -> int:
        """The most tokens of one step on one rank, whatever the shuffle."""
        groups, longest = self.trainer.data_parallel, int(self.lengths[0])
        if self.batch_size:
            rows = -(-self.batch_size // groups)
            return int(self.lengths[:rows].sum())
        assert self.batch_tokens
        # A step ends with the row that reaches batch_tokens, and a rank's share with a row at most the longest.
        step = min(self.batch_tokens + longest - 1, int(self.lengths.sum()))
        return min(step // groups + longest, step)


def largest_micro_batch(descending: np.ndarray, limit: int) -> list[int]:
    """The dearest micro-batch of at most `limit` tokens that these documents could make, whatever the shuffle.

    The longest of them fill it to the brim (scores grow with T²) and, unless all are equal, they differ in length:
    a real one has no more tokens, no more scores and no more copies. One document alone may be over the limit.
    """
    limit = min(max(limit, int(descending[0])), int(descending.sum()))
    count = int(np.searchsorted(descending.cumsum(), limit, side="right"))
    filled = [int(length) for length in descending[:count]]
    rest = limit - sum(filled)
    if not rest and count > 1 and filled[0] == filled[-1] != descending[-1]:
        rest = 1  # a token too many: of another length, as documents of a real one may be
    return [*filled, rest] if rest else filled


def device_memory(trainer: TrainerConfig) -> int:
    """Bytes that one device may fill: what the configuration says, else what is free here now."""
    if trainer.device_memory:
        return int(trainer.device_memory * GIB)
    if (device := chosen_device(trainer.accelerator)).type == "cuda":
        torch.cuda.empty_cache()  # what an earlier run in this process has freed would count as taken
        return int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    give_freed_memory_back()
    free = min(psutil.virtual_memory().available, container_memory())
    return int(free * CPU_SHARE) // trainer.devices


def container_memory() -> float:
    """Bytes left to this process's control group (a container, a SLURM job); infinite where there is no limit."""
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no such group, or "max"
        return math.inf


def fitting_tokens(demand: MemoryDemand) -> tuple[int, str]:
    """What train.micro_batch_tokens comes to where it is unset, whatever the demand has, and why.

    On a GPU it is the whole step, or else the largest power of two with which a step fits.
    """
    if chosen_device(demand.trainer.accelerator).type == "cpu":
        return CPU_TOKENS, "more make a CPU no faster"
    limit, step = device_memory(demand.trainer), -(-demand.largest_share() // 1024) * 1024
    smaller = (2**power for power in range(GPU_TOKENS.bit_length() - 1, 9, -1))
    candidates = [min(step, GPU_TOKENS), *(tokens for tokens in smaller if tokens < step)]
    for tokens in candidates:
        if replace(demand, micro_batch_tokens=tokens).memory().peak <= limit:
            whole = "the whole step" if tokens >= step else "enough to keep a GPU busy"
            return tokens, whole if tokens == candidates[0] else f"what fits into {memory_in_words(limit)}"
    return candidates[-1], "more don't fit"


def memory_in_words(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def require_memory(demand: MemoryDemand) -> None:
    """ValueError with keys to paste, where a step needs more than a device has."""
    limit, needed = device_memory(demand.trainer), demand.memory().peak
    if needed <= limit:
        return
    given = "trainer.device_memory"
    source = given if demand.trainer.device_memory else f"free now; {given}=GIB overrides"
    message = f"a step would need {memory_in_words(needed)} of a device that has {memory_in_words(limit)} ({source})"
    for keys, changed in remedies(demand):
        peak = changed.memory().peak
        if peak <= device_memory(changed.trainer):  # of a CPU, processes share one memory
            raise ValueError(f"{message}. This would do, at {memory_in_words(peak)}: {keys}")
    raise ValueError(f"{message}; not even {MOST_DEVICES} of them would do: choose a smaller model or larger devices")


def remedies(demand: MemoryDemand) -> Iterator[tuple[str, MemoryDemand]]:
    """("key=value …", what it makes of the demand), the least costly first.

    Smaller micro-batches cost least, then recomputing; bf16 weights cost accuracy; last come more devices.
    """
    trainer = demand.trainer
    strategies = ["fsdp"] if trainer.strategy == "fsdp" or trainer.data_parallel == 1 else ["ddp", "fsdp"]
    for precision in dict.fromkeys([trainer.precision, "bf16-true"]):
        for strategy in dict.fromkeys([trainer.strategy, *strategies]):
            yield from cheaper_passes(demand, precision=precision, strategy=strategy)
    world = trainer.devices * trainer.nodes
    for devices in (2**power for power in range(1, MOST_DEVICES.bit_length())):
        for parts in (1, 2, 4, 8):
            if devices < world or devices % parts or demand.model.num_attention_heads % parts:
                continue
            machine = min(devices, DEVICES_A_MACHINE)
            layout = {"devices": machine, "nodes": devices // machine, "tensor_parallel": parts}
            yield from cheaper_passes(demand, strategy="fsdp", **layout)


def cheaper_passes(demand: MemoryDemand, **trainer: Any) -> Iterator[tuple[str, MemoryDemand]]:
    """Less and less to keep in one pass, under these keys of trainer."""
    modes = ["none", "selective", "full"]
    for mode in modes[modes.index(demand.trainer.activation_checkpointing) :]:
        tokens, longest = demand.micro_batch_tokens, int(demand.lengths[0])
        while True:
            keys = {"activation_checkpointing": mode, **trainer}
            changed = replace(demand, trainer=replace(demand.trainer, **keys), micro_batch_tokens=tokens)
            yield " ".join(changed_keys(demand, changed)), changed
            if tokens <= longest:
                break
            tokens = max(tokens // 2, longest)


def changed_keys(before: MemoryDemand, after: MemoryDemand) -> Iterator[str]:
    if after.micro_batch_tokens != before.micro_batch_tokens:
        yield f"train.micro_batch_tokens={after.micro_batch_tokens}"
    for name in TrainerConfig.__dataclass_fields__:
        if getattr(after.trainer, name) != getattr(before.trainer, name):
            yield f"trainer.{name}={getattr(after.trainer, name)}"
