"""Number formats: which one trainer.precision means here, why, and what is compiled."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import torch

from ..config.training import TrainerConfig
from ..system.hardware import bf16_speedup, chosen_device

WORTHWHILE = 1.2
"""How many times as fast bfloat16 must be. Hardware that has it is twice as fast, other hardware slower."""


def settle_precision(config: TrainerConfig, earlier: str | None = None) -> None:
    """Replaces trainer.precision=auto: `earlier`, that of the run that is gone on with, or what is fastest here."""
    if config.precision == "auto":
        config.precision = earlier or ("bf16-mixed" if bf16_speedup(on_gpu(config)) >= WORTHWHILE else "32-true")  # type: ignore[assignment]


def describe_precision(config: TrainerConfig) -> str:
    """trainer.precision once it is settled, and what speaks for it; on a GPU also whether layers are compiled."""
    speedup = bf16_speedup(on_gpu(config))
    if on_gpu(config):
        has = "has bfloat16" if speedup > 1 else "has bfloat16 by emulation alone"
        return f"{config.precision} (the GPU {has}; layers {'are' if compiles(config) else 'are not'} compiled)"
    return f"{config.precision} (matrix products in bfloat16 are {speedup:.1f} times as fast as in float32 here)"


def compiles(config: TrainerConfig) -> bool:
    """Whether layers are compiled: on a GPU, unless FSDP's hooks run inside of them, which can't be compiled."""
    if not on_gpu(config) or (config.strategy == "fsdp" and config.devices * config.nodes > 1):
        return False
    return has_compiler() if config.compile is None else config.compile


def has_compiler() -> bool:
    """What Triton needs to build what launches its kernels: a C compiler, and Python's headers."""
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return headers and any(map(shutil.which, ("cc", "gcc", "clang")))


def on_gpu(config: TrainerConfig) -> bool:
    return chosen_device(config.accelerator).type == "cuda"


def compute_format(config: TrainerConfig) -> torch.dtype | None:
    """The number format that FSDP gathers parameters in, for parallel.parallelize; None: their own."""
    spread = config.devices * config.nodes > 1 and config.strategy == "fsdp"
    return torch.bfloat16 if spread and config.precision == "bf16-mixed" else None
