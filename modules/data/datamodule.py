"""The LightningDataModule that serves encoded rows as optimizer steps."""

from __future__ import annotations

import datasets
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from ..config.data import DataConfig
from ..system.cache import cache_folder
from ..tokenizer.tokenizer import Tokenizer
from .encoding import stored_documents
from .packing import ShuffledSteps, StepBatch, count_steps, in_order

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

    @property
    def steps_per_epoch(self) -> int:
        return count_steps(self.documents["train"].lengths, self.batch_size, self.batch_tokens)

    def train_dataloader(self) -> DataLoader[StepBatch]:
        """The steps that are left of training; outside a trainer those of the first epoch."""
        plan = self.batch_size, self.batch_tokens, self.seed, self.micro_batch_tokens
        steps = ShuffledSteps(self.documents["train"], *plan, **self.share())
        left = range(self.trainer.global_step, self.trainer.max_steps) if self.trainer else range(len(steps.plan))
        return DataLoader(steps, batch_size=None, sampler=left)

    def val_dataloader(self) -> DataLoader[StepBatch]:
        steps = in_order(self.documents["validation"], self.micro_batch_tokens, **self.share())
        return DataLoader(steps, batch_size=None, sampler=range(len(steps)))

    def beginning(self, document: int, characters: int = 20) -> str:
        """Of a training document's text, to find its row by."""
        documents = self.documents["train"]
        ids = documents.ids[documents.offsets[document] : documents.offsets[document + 1]][: 3 * characters]
        text = self.tokenizer.decode(ids.tolist()).replace("\n", " ")
        return text[:characters] + "…" * (len(text) > characters)

    def share(self) -> dict[str, int]:
        """This process's of each step; devices that share each matrix take the same rows."""
        if not self.trainer:
            return {}
        shares = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        multiple = GPU_MULTIPLE if self.trainer.strategy.root_device.type == "cuda" else 1
        return {"rank": shares["rank"], "world_size": shares["num_replicas"], "multiple": multiple}
