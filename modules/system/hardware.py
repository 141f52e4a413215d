"""The machine: what it is, in words; how many threads pay; which device, how fast; how memory is given back."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import time
from functools import cache
from pathlib import Path

import torch

PROBE_SIZE, PROBES = 384, 8
"""Rows and columns of the matrices that number formats are compared by, and how often; the fastest counts."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
GPU_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bf16 FLOP/s with float32 accumulation, of the SXM cards where there are several, from NVIDIA's data sheets."""

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "neon")


def keep_freed_memory() -> None:
    """Makes glibc's malloc reuse large blocks. By itself it maps each anew, and the kernel fills it with zeros
    page by page: of a small model's step that is a quarter. Where another allocator is preloaded nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_freed_memory_back() -> None:
    """What was kept of an earlier run in this process; who asks the system what is free would find it taken."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def grow_gpu_memory_in_place() -> None:
    """Has torch extend its blocks of GPU memory instead of adding others: micro-batches differ in size, and leave gaps.

    It is read when CUDA starts, so this comes before; what the user has set stays.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def local_rank() -> int:
    """This process's number among those that torchrun, SLURM or the launcher started on this machine."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def default_device() -> torch.device:
    """The accelerator, where there is one; of several GPUs the one of this process."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    # SLURM may show each process its own GPU alone, as number 0.
    return torch.device("cuda", local_rank() % torch.cuda.device_count()) if device.type == "cuda" else device


def chosen_device(accelerator: str) -> torch.device:
    """What trainer.accelerator comes to here."""
    return torch.device("cpu") if accelerator == "cpu" else default_device()


def gpu_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s of a card by torch's name for it; None for one that isn't in the table."""
    slower = "PCIe" in name or "NVL" in name
    return next((peak for card, peak in GPU_PEAKS.items() if card in name and not slower), None)


@cache
def bf16_speedup(on_gpu: bool = False) -> float:
    """How many times as fast as in float32 matrix products are in bfloat16: tried in a few milliseconds on a CPU.

    On a GPU infinite where it has bfloat16, else 0.
    """
    if on_gpu:
        return math.inf if torch.cuda.is_bf16_supported(including_emulation=False) else 0.0
    seconds: dict[torch.dtype, float] = {}
    for number_format in (torch.float32, torch.bfloat16) * PROBES:
        matrix = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=number_format)
        started = time.perf_counter()
        torch.nn.functional.linear(matrix, matrix)
        taken = time.perf_counter() - started
        seconds[number_format] = min(taken, seconds.get(number_format, taken))
    return seconds[torch.float32] / seconds[torch.bfloat16]


def default_threads() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine(threads: int) -> dict[str, str]:
    """CPU, threads, instruction sets, and GPU where there is one."""
    cpu, flags = platform.processor() or platform.machine(), ""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        cpu = found[1] if (found := re.search(r"model name\s*:\s*(.+)", text)) else cpu
        flags = found[1] if (found := re.search(r"flags\s*:\s*(.+)", text)) else ""
    except OSError:
        pass
    sets = ", ".join(name for name in INSTRUCTION_SETS if name in flags.split())
    said = {"CPU": cpu, "threads": str(threads), "instruction sets": sets or "unknown"}
    if torch.cuda.is_available():
        said["GPU"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return said
