"""Other people's PyTorch pickles, read without running what may stand in them."""

from __future__ import annotations

from pathlib import Path

import torch

from ..weights import StoredTensor, stored


def read_pickle(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a pytorch_model.bin, mapped from the file."""
    return stored(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
