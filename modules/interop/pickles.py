"""Other people's PyTorch pickles, read without running what may stand in them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pytorch_model.bin, mapped from the file."""
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return tensors
