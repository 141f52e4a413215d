"""The LightningDataModule that serves encoded rows as optimizer steps."""

from __future__ import annotations

import datasets
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from ..config.data import DataConfig
from ..system.cache import cache_folder
from ..tokenizer.tokenizer import Tokenizer
from .encoding import stored_documents
from .packing import ShuffledSteps, StepBatch, StepDataset, count_steps, in_order
from .prefetching import Prefetched

Loader = DataLoader[StepBatch] | Prefetched

GPU_MULTIPLE = 256
"""What a pass's tokens are filled up to a multiple of on a GPU: kernels, and compiled code, take few shapes well."""


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
        self.batch_size, self.batch_tokens, self.micro_batch_tokens = batch_size, batch_tokens, micro_batch_tokens
        self.seed, self.tokenizer = seed, tokenizer
        how = tokenizer, config.sequence_length, config.over_long, cache_folder(config.cache_dir)
        self.documents = {name: stored_documents(rows, *how) for name, rows in splits.items() if name != "test"}

    def setup(self, stage: str) -> None:
        """Ranks whose GPUs have other amounts of memory free still split steps alike: as the one with the least."""
        if dist.is_initialized() and self.trainer:
            least = torch.tensor(self.micro_batch_tokens, device=self.trainer.strategy.root_device)
            dist.all_reduce(least, dist.ReduceOp.MIN)
            self.micro_batch_tokens = int(least)

    @property
    def steps_per_epoch(self) -> int:
        return count_steps(self.documents["train"].lengths, self.batch_size, self.batch_tokens)

    def train_dataloader(self) -> Loader:
        """The steps that are left of training; outside a trainer those of the first epoch."""
        plan = self.batch_size, self.batch_tokens, self.seed, self.micro_batch_tokens
        steps = ShuffledSteps(self.documents["train"], *plan, **self.share())
        left = range(self.trainer.global_step, self.trainer.max_steps) if self.trainer else range(len(steps.plan))
        return self.loader(steps, left)

    def val_dataloader(self) -> Loader:
        steps = in_order(self.documents["validation"], self.micro_batch_tokens, **self.share())
        return self.loader(steps, range(len(steps)))

    def loader(self, steps: StepDataset, numbers: range) -> Loader:
        loader = DataLoader(steps, batch_size=None, sampler=numbers)
        return Prefetched(loader) if self.on_gpu else loader

    def beginning(self, document: int, characters: int = 20) -> str:
        """Of a training document's text, to find its row by."""
        documents = self.documents["train"]
        ids = documents.ids[documents.offsets[document] : documents.offsets[document + 1]][: 3 * characters]
        text = self.tokenizer.decode(ids.tolist()).replace("\n", " ")
        return text[:characters] + "…" * (len(text) > characters)

    def share(self) -> dict[str, int]:
        """Which part of each step is this process's; devices that share each matrix take the same rows."""
        if not self.trainer:
            return {}
        shares = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        multiple = GPU_MULTIPLE if self.on_gpu else 1
        return {"rank": shares["rank"], "world_size": shares["num_replicas"], "multiple": multiple}

    @property
    def on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
