"""Steps laid out while the one before is computed, in memory that a GPU can copy from by itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader

from .packing import StepBatch


class Prefetched:
    """A loader's steps; a thread lays out and pins the next one while its reader works on the last."""

    def __init__(self, loader: DataLoader[StepBatch]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[StepBatch]:
        steps = iter(self.loader)

        def following() -> StepBatch | None:
            return None if (step := next(steps, None)) is None else pinned(step)

        with ThreadPoolExecutor(1, "next step") as thread:
            coming = thread.submit(following)
            while (step := coming.result()) is not None:
                coming = thread.submit(following)
                yield step


def pinned(step: StepBatch) -> StepBatch:
    """Its tensors in page-locked memory: Lightning then copies them to the GPU without waiting for it."""
    result: StepBatch = apply_to_collection(step, Tensor, Tensor.pin_memory)
    return result
