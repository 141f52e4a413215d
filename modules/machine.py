"""What a machine is, in words: so that a reader can place a number."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "neon")


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
