"""The LightningDataModule that serves encoded rows as optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader, Sampler

from .cache import cache_folder
from .config import DataConfig
from .packing import StepBatch, count_steps, plan_steps
from .steps import Steps, in_order
from .token_store import stored_documents
from .tokenizer import Tokenizer


class TextDataModule(pl.LightningDataModule):
    """Serves steps: shuffled anew by (seed, epoch) for training, in order for validation."""

    def __init__(
        self,
        splits: dict[str, datasets.Dataset],
        tokenizer: Tokenizer,
        config: DataConfig,
        *,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        micro_batch_tokens: int = 2048,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.micro_batch_tokens = micro_batch_tokens
        self.seed = seed
        self.documents = {
            name: stored_documents(
                rows, tokenizer, config.sequence_length, config.over_long, cache_folder(config.cache_dir)
            )
            for name, rows in splits.items()
            if name != "test"
        }

    @property
    def steps_per_epoch(self) -> int:
        return count_steps(self.documents["train"].lengths, self.batch_size, self.batch_tokens)

    def train_dataloader(self) -> DataLoader[StepBatch]:
        documents = self.documents["train"]
        epoch = self.trainer.current_epoch if self.trainer else 0
        order = np.random.default_rng((self.seed, epoch)).permutation(len(documents))
        plan = plan_steps(documents.lengths, order, self.batch_size, self.batch_tokens)
        return self.loader(Steps(documents, plan, self.micro_batch_tokens, **self.ranks()))

    def val_dataloader(self) -> DataLoader[StepBatch]:
        return self.loader(in_order(self.documents["validation"], self.micro_batch_tokens, **self.ranks()))

    def ranks(self) -> dict[str, int]:
        """This process's share of each step; devices that share each matrix take the same rows."""
        if not self.trainer:
            return {}
        shares = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        return {"rank": shares["rank"], "world_size": shares["num_replicas"]}

    def loader(self, steps: Steps) -> DataLoader[StepBatch]:
        return StepLoader(steps, batch_size=None, collate_fn=identity, sampler=Remaining(len(steps)))


class Remaining(Sampler[int]):
    """Steps of an epoch in order, from the first that isn't done yet."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0

    def __len__(self) -> int:
        return self.steps  # of the whole epoch: Lightning counts from where it resumes

    def __iter__(self) -> Iterator[int]:
        yield from range(self.done, self.steps)


class StepLoader(DataLoader[StepBatch]):
    """Lightning keeps its state in checkpoints: resumed in the middle of an epoch, it goes on with the next step."""

    given = 0

    def __iter__(self) -> Any:
        for step in super().__iter__():
            self.given += 1
            yield step

    def state_dict(self) -> dict[str, int]:
        return {"done": self.sampler.done + self.given}  # type: ignore[attr-defined]

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.done = state["done"]  # type: ignore[attr-defined]


def identity(step: Any) -> Any:
    """Steps are tensors already; the loader's default would rebuild them."""
    return step
