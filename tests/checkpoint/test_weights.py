"""Weights on disk: several files with an index, of which no more than one is ever in memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from modules.checkpoint.weights import CheckpointError, read_weights, write_weights


def test_no_more_than_a_file_is_in_memory(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []  # a tensor made of an array keeps it, whatever view is taken of it
    most = 0

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for number in range(12):
            array = np.full(10, number, dtype=np.float32)
            alive.append(weakref.ref(array))
            yield str(number), torch.from_numpy(array)
            del array
            most = max(most, sum(reference() is not None for reference in alive))

    files = write_weights(tmp_path, tensors(), shard_bytes=3 * 40)
    assert [path.name for path in files] == [f"model-{n:05}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    assert most <= 4  # three of a file, and the next one
    found = read_weights(tmp_path)
    assert all(found[str(number)].read().tolist() == [number] * 10 for number in range(12))
    files[2].unlink()
    with pytest.raises(CheckpointError, match="model-00003-of-00004.safetensors is missing, but model.safetensors.ind"):
        read_weights(tmp_path)
