"""The decoder under Lightning: one _step behind training and validation; optimizer and schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ParallelStrategy
from torch import Tensor, nn

from .config import TrainConfig
from .decoder import Decoder
from .loss import linear_cross_entropy
from .metrics import perplexity_per_character
from .packing import MicroBatch, StepBatch
from .parallel import clip_gradients, fill, parallelize
from .schedule import learning_rate_factor


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became NaN or infinite; raised before the step could spoil the weights."""


class LanguageModel(pl.LightningModule):
    """A batch is a whole optimizer step (packing.StepBatch), so optimization is manual.

    The loss is summed over trained tokens and divided by those of the whole step, over micro-batches and ranks:
    a step's gradient is the same however it is split.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: TrainConfig,
        learning_rate: float,
        total_steps: int,
        tensors: Iterable[tuple[str, Tensor]] = (),
        compute: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        """A decoder on the meta device is laid out when the devices are known, and filled from `tensors`.

        compute: the number format that FSDP gathers parameters in. seed: of dropout.
        """
        super().__init__()
        self.automatic_optimization = False
        self.decoder = decoder
        self.config = config
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.tensors = tensors
        self.compute = compute
        self.seed = seed
        self.latest: dict[str, float] = {}
        """The last step's metrics, for the progress bar."""
        self.validations: dict[int, dict[str, float]] = {}
        """Validation metrics by the step they were taken at."""
        self.totals: dict[str, float] = {}
        self.step_ended_at = 0.0

    def configure_model(self) -> None:
        if not self.decoder.word_embeddings.weight.is_meta:
            return
        if self.device_mesh is not None:
            parallelize(self.decoder, self.device_mesh, self.compute)
        self.decoder.to_empty(device=self.device)
        fill(self.decoder, self.tensors)

    def _step(self, batch: MicroBatch) -> Tensor:
        """Summed negative log-likelihood of the batch's trained tokens."""
        head = partial(linear_cross_entropy, labels=batch.labels)
        nll: Tensor = self.decoder(batch.input_ids, batch.document_lengths, head=head)
        return nll

    def trained_parameters(self) -> list[nn.Parameter]:
        """Asked for anew each time: spreading a model over devices makes parameters of its own."""
        return [parameter for parameter in self.decoder.parameters() if parameter.requires_grad]

    def on_train_start(self) -> None:
        self.step_ended_at = time.perf_counter()

    def training_step(self, step: StepBatch, batch_idx: int) -> None:
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        self.seed_dropout()
        nll = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, batch in enumerate(step.micro_batches):
            last = number == len(step.micro_batches) - 1
            with nullcontext() if last else self.gradients_incomplete():
                loss = self._step(batch)
                nll += loss.detach()
                # Gradients are averaged over the ranks, but the sum is wanted.
                self.manual_backward(loss * (self.data_parallel / step.trained_tokens))
        loss_value = float(self.summed(nll)) / step.trained_tokens
        if not math.isfinite(loss_value):
            self.refuse_to_step(loss_value, "loss")
        norm = clip_gradients(self.trained_parameters(), self.config.gradient_clip_val or math.inf)
        if not math.isfinite(norm):
            self.refuse_to_step(norm, "gradient norm")
        learning_rate = float(scheduler.get_last_lr()[0])  # type: ignore[union-attr]
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        scheduler.step()  # type: ignore[union-attr]
        self.log_step(loss_value, step.trained_tokens, norm, learning_rate)

    def seed_dropout(self) -> None:
        """By a step and a share of it: a resumed run draws what it would have drawn; who share matrices agree."""
        share = dist.get_rank(self.data_group) if dist.is_initialized() else 0
        seed = int(np.random.SeedSequence((self.seed, self.trainer.global_step, share)).generate_state(1)[0])
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed keeps a stack trace for each absent device
        else:
            torch.manual_seed(seed)

    def gradients_incomplete(self) -> AbstractContextManager[None]:
        """DDP need not exchange them yet."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    @property
    def data_parallel(self) -> int:
        """Groups of devices that each took a share of the step."""
        return dist.get_world_size(self.data_group) if dist.is_initialized() else 1

    @property
    def data_group(self) -> dist.ProcessGroup | None:
        return None if self.device_mesh is None else self.device_mesh["data_parallel"].get_group()

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over the shares of all ranks."""
        if dist.is_initialized():
            dist.all_reduce(tensor, group=self.data_group)
        return tensor

    def refuse_to_step(self, value: float, name: str) -> None:
        step, rate = self.trainer.global_step, self.lr_schedulers().get_last_lr()[0]  # type: ignore[union-attr]
        raise NonFiniteLossError(
            f"the {name} is {value} at step {step} (learning rate {rate:.3g}); "
            f"the weights of step {step} are untouched. "
            "Try a lower train.learning_rate, more train.warmup_steps, or trainer.precision=32-true"
        )

    def log_step(self, loss: float, tokens: int, gradient_norm: float, learning_rate: float) -> None:
        """Straight to the logger: self.log costs milliseconds a step, which is much for a tiny model."""
        now = time.perf_counter()
        self.latest = {
            "train/loss": loss,
            "train/tokens_per_second": tokens / (now - self.step_ended_at),
            "grad_norm": gradient_norm,
            "lr": learning_rate,
        }
        self.step_ended_at = now
        if self.logger and self.global_step % self.config.log_every_n_steps == 0:
            self.logger.log_metrics(self.latest, step=self.global_step)

    def on_validation_epoch_start(self) -> None:
        self.totals = {"nll": 0.0, "tokens": 0, "characters": 0, "ends": 0}

    def validation_step(self, step: StepBatch, batch_idx: int) -> None:
        for batch in step.micro_batches:
            self.totals["nll"] += float(self._step(batch))
            self.totals["tokens"] += batch.trained_tokens
            self.totals["characters"] += batch.characters
            self.totals["ends"] += batch.ends

    def on_validation_epoch_end(self) -> None:
        totals = torch.tensor(list(self.totals.values()), dtype=torch.float64, device=self.device)
        nll, tokens, characters, ends = self.summed(totals).tolist()
        metrics = {
            "val/loss": nll / tokens,
            "val/perplexity": math.exp(min(nll / tokens, 700.0)),
            "val/perplexity_per_char": perplexity_per_character(nll, int(characters), int(ends)),
        }
        self.validations[self.trainer.global_step] = metrics
        self.log_dict(metrics, logger=False)  # for the callbacks that watch val/loss
        if self.logger:
            self.logger.log_metrics(metrics, step=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["validations"] = self.validations

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.validations = checkpoint["validations"]

    def on_validation_end(self) -> None:
        self.step_ended_at = time.perf_counter()  # validation isn't training time

    def configure_optimizers(self) -> Any:
        """AdamW that decays matrices and leaves LayerNorms and biases alone (GPT-2's practice)."""
        parameters = self.trained_parameters()
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": self.config.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        betas = (self.config.beta1, self.config.beta2)
        optimizer = torch.optim.AdamW(groups, self.learning_rate, betas, self.config.epsilon, fused=True)
        factor = partial(learning_rate_factor, config=self.config, total_steps=self.total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
