"""The same numbers in every run on a GPU: kernels that add up in a fixed order, around the step alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# cuBLAS adds up in a fixed order with workspaces of a fixed size alone, and looks here when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Within it torch takes deterministic kernels, and raises RuntimeError where it has none.

    Outside of it, sampling and metrics may use what they like. New memory isn't filled with NaN, torch's default then.
    """
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(wanted or before)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled
