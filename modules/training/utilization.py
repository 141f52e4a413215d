"""What each step makes of a GPU: the share of its speed that goes into the model, and the most memory taken."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from ..config.model import ModelConfig
from ..config.training import TrainerConfig
from ..system.hardware import gpu_peak
from .lightning_module import LanguageModel
from .planning.flops import step_flops


class Utilization(pl.Callback):
    """Logs train/peak_memory_gib, and train/mfu: model FLOP/s ÷ the card's dense bf16 peak, where that is known.

    Adapters have no train/mfu: matrices that are frozen need no gradients of their own, which the count includes.
    """

    def __init__(self, model: ModelConfig, trainer: TrainerConfig, adapters: bool = False) -> None:
        self.model, self.parts = asdict(model), trainer.tensor_parallel
        self.peak = None if adapters else gpu_peak(torch.cuda.get_device_name())

    def on_train_batch_start(self, *_: Any) -> None:
        torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        metrics = {"train/peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30}
        if self.peak:
            seconds = batch.trained_tokens / pl_module.latest["train/tokens_per_second"]
            documents = np.concatenate([micro_batch.documents for micro_batch in batch.micro_batches])
            lengths = trainer.datamodule.documents["train"].lengths_of(documents)  # type: ignore[attr-defined]
            metrics["train/mfu"] = step_flops(self.model, lengths) / self.parts / seconds / self.peak
        if trainer.logger and trainer.global_step % pl_module.config.log_every_n_steps == 0:
            trainer.logger.log_metrics(metrics, step=trainer.global_step)
