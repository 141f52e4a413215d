"""The decoder under Lightning: one _step behind training and validation; optimizer and schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ParallelStrategy
from torch import Tensor, nn

from ..config.training import TrainConfig
from ..data.packing import BEGINNING, MicroBatch, StepBatch
from ..model.decoder import Decoder, allocate
from ..model.loss import linear_cross_entropy, stopping_cross_entropy
from ..model.parallel import fill, parallelize
from ..system.signals import StopRequest
from .checkpoints.loop_counters import count_on
from .determinism import deterministic_kernels
from .nonfinite import SkippedSteps, refusal, rows_in
from .optimizer import gradient_norm, learning_rate_factor, make_optimizer, scale_gradients
from .validation.sums import Validation, metrics_of_all


class LanguageModel(pl.LightningModule):
    """A batch is a whole optimizer step (packing.StepBatch), so optimization is manual.

    The summed loss is divided by the trained tokens of the whole step: its gradient is the same however it is split.
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
        deterministic: bool = True,
    ) -> None:
        """A decoder on the meta device is laid out when the devices are known, and filled from `tensors`.

        compute: the number format that FSDP gathers parameters in. seed: of dropout. deterministic: on a GPU.
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
        self.deterministic = deterministic
        self.latest: dict[str, float] = {}
        """The last step's metrics, for the progress bar."""
        self.validations: dict[int, dict[str, float]] = {}
        """Validation metrics by the step they were taken at."""
        self.totals = [Validation()]
        """Of each source of a mixture."""
        self.step_ended_at = 0.0
        self.stop: StopRequest | None = None
        """Looked at once a step; the ranks agree on it."""
        self.stop_agreed = False
        self.skipped = SkippedSteps()
        self.place = BEGINNING
        """How far training has come."""
        self.validation_offset = 0
        """Course.offset."""
        self.score_texts: Callable[[], dict[str, float]] | None = None
        """Metrics of texts that the model writes at each validation."""

    def configure_model(self) -> None:
        if not self.decoder.word_embeddings.weight.is_meta:
            return
        if self.device_mesh is not None:
            parallelize(self.decoder, self.device_mesh, self.compute)
        allocate(self.decoder, self.trainer.strategy.root_device if self._trainer else self.device)
        fill(self.decoder, self.tensors)

    def _step(self, batch: MicroBatch) -> Tensor:
        """Summed negative log-likelihood of the batch's trained tokens."""
        compiled = self.decoder.transformer.compile_layers and batch.input_ids.is_cuda
        head = partial(linear_cross_entropy, labels=batch.labels, trained=batch.trained, compiled=compiled)
        nll: Tensor = self.decoder(batch.input_ids, batch.layout, head=head)
        return nll

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """By name; asked for anew each time: spreading a model over devices makes parameters of its own."""
        return {name: parameter for name, parameter in self.decoder.named_parameters() if parameter.requires_grad}

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.trained_parameters().items(), self.config, self.learning_rate)

    def on_train_start(self) -> None:
        if self.global_step:
            self.set_rates()
        self.step_ended_at = time.perf_counter()

    def set_rates(self) -> None:
        """This run's, whatever the checkpoint says: a change that was allowed is one."""
        scheduler: Any = self.lr_schedulers()
        rate = self.learning_rate * learning_rate_factor(self.global_step, self.config, self.total_steps)
        scheduler.base_lrs = [self.learning_rate for _ in scheduler.base_lrs]
        scheduler._last_lr = [rate for _ in scheduler.base_lrs]
        for group, now in zip(scheduler.optimizer.param_groups, self.fresh_optimizer().param_groups, strict=True):
            group |= now | {"params": group["params"], "lr": rate}

    def training_step(self, step: StepBatch, batch_idx: int) -> None:
        with deterministic_kernels(self.deterministic and self.device.type == "cuda"):
            self.optimizer_step_of(step)

    def optimizer_step_of(self, step: StepBatch) -> None:
        """One optimizer step. A GPU is waited for once, when loss, norm and stop requests are known."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        # Gradients are averaged over the ranks that each took a share of the step, but the sum is wanted.
        shares = dist.get_world_size(self.data_group) if dist.is_initialized() else 1
        self.seed_dropout()
        losses = torch.zeros(len(step.micro_batches), dtype=torch.float64, device=self.device)
        for number, batch in enumerate(step.micro_batches):
            last = number == len(step.micro_batches) - 1
            with nullcontext() if last else self.gradients_incomplete():
                loss = self._step(batch)
                losses[number] = loss.detach()
                self.manual_backward(loss * (shares / step.trained_tokens))
        gradients = [parameter.grad for parameter in self.trained_parameters().values() if parameter.grad is not None]
        total, norm = self.agree(losses, gradient_norm(gradients))
        loss_value = total / step.trained_tokens
        scale_gradients(gradients, norm, self.config.gradient_clip_val or math.inf)
        learning_rate = float(scheduler.get_last_lr()[0])  # type: ignore[union-attr]
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            self.handle_nonfinite(step, losses, loss_value, norm, learning_rate)
        else:
            self.skipped.in_a_row = 0
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        scheduler.step()  # type: ignore[union-attr]
        self.place = step.place
        self.log_step(loss_value, step, norm, learning_rate)

    def agree(self, losses: Tensor, norm: Tensor) -> tuple[float, float]:
        """The step's summed loss over all ranks and the gradients' norm; and whether a rank was asked to stop."""
        asked = float(self.stop is not None and self.stop.asked)
        total = self.summed(torch.stack([losses.sum(), torch.full_like(losses.sum(), asked)]))
        loss, stop, norm_value = torch.cat([total, norm.to(total)[None]]).tolist()
        self.stop_agreed = stop > 0
        return loss, norm_value

    def seed_dropout(self) -> None:
        """By a step and a share of it: a resumed run draws what it would have drawn; who share matrices agree."""
        share = dist.get_rank(self.data_group) if dist.is_initialized() else 0
        seed = int(np.random.SeedSequence((self.seed, self.trainer.global_step, share)).generate_state(1)[0])
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed keeps a stack trace for each absent device
        else:
            torch.cuda.manual_seed(seed)

    def gradients_incomplete(self) -> AbstractContextManager[None]:
        """DDP need not exchange them yet."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    @property
    def data_group(self) -> dist.ProcessGroup | None:
        return None if self.device_mesh is None else self.device_mesh["data_parallel"].get_group()

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over the shares of all ranks."""
        if dist.is_initialized():
            dist.all_reduce(tensor, group=self.data_group)
        return tensor

    def handle_nonfinite(self, step: StepBatch, losses: Tensor, loss: float, norm: float, rate: float) -> None:
        """Raises NonFiniteLossError, or leaves the step out; by sums over all ranks, so each decides the same."""
        rows = rows_in(self.trainer.datamodule, step, losses, math.isfinite(loss))  # type: ignore[attr-defined]
        name, value = ("gradient norm", norm) if math.isfinite(loss) else ("loss", loss)
        what = f"the {name} is {value} at step {self.trainer.global_step} (learning rate {rate:.3g}, {rows})"
        if self.config.on_nonfinite == "stop":
            raise refusal(what)
        self.skipped.skip(what, self.trained_parameters().values())

    def log_step(self, loss: float, step: StepBatch, gradient_norm: float, learning_rate: float) -> None:
        """Straight to the logger: self.log costs milliseconds a step, which is much for a tiny model."""
        now = time.perf_counter()
        self.latest = {
            "train/loss": loss,
            "train/epoch": step.epochs,
            "train/tokens_per_second": step.trained_tokens / (now - self.step_ended_at),
            "grad_norm": gradient_norm,
            "lr": learning_rate,
        }
        self.step_ended_at = now
        if self.skipped.steps:
            self.latest["train/skipped_steps"] = self.skipped.steps
        if self.logger and self.global_step % self.config.log_every_n_steps == 0:
            self.logger.log_metrics(self.latest, step=self.global_step)

    def on_validation_epoch_start(self) -> None:
        mixture = self.trainer.datamodule.mixture  # type: ignore[attr-defined]
        self.totals = [Validation() for _ in mixture.names] if mixture else [Validation()]

    def leave_if_asked(self) -> None:
        """Within a validation; all ranks have to call it together. The checkpoint was written before."""
        if self.stop is not None and float(self.summed(torch.tensor([float(self.stop.asked)], device=self.device))):
            self.stop.leave()

    def validation_step(self, step: StepBatch, batch_idx: int) -> None:
        self.leave_if_asked()
        end = self.trainer.datamodule.tokenizer.end_of_text_id  # type: ignore[attr-defined]
        for batch in step.micro_batches:
            head = partial(stopping_cross_entropy, labels=batch.labels, trained=batch.trained, end_of_text_id=end)
            source = self.trainer.datamodule.validated_source(batch)  # type: ignore[attr-defined]
            self.totals[source].add(batch, self.decoder(batch.input_ids, batch.layout, head=head))

    def on_validation_epoch_end(self) -> None:
        totals = torch.tensor(list(map(astuple, self.totals)), dtype=torch.float64, device=self.device)
        sums = [Validation(*found) for found in self.summed(totals).tolist()]
        mixture = self.trainer.datamodule.mixture  # type: ignore[attr-defined]
        metrics = metrics_of_all(mixture.names, sums, mixture.weights) if mixture else sums[0].metrics()
        if self.score_texts:
            metrics |= self.score_texts()
        self.validations[self.trainer.global_step] = metrics
        self.log_dict(metrics, logger=False)  # for early stopping
        if self.logger:
            self.logger.log_metrics(metrics, step=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["validations"] = self.validations
        checkpoint["skipped"] = vars(self.skipped)
        checkpoint["progress"] = self.trainer.datamodule.progress(self.place)  # type: ignore[attr-defined]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        count_on(self.trainer, checkpoint["global_step"], self.validation_offset)
        self.validations = checkpoint["validations"]
        self.skipped = SkippedSteps(**checkpoint["skipped"])

    def on_validation_end(self) -> None:
        self.step_ended_at = time.perf_counter()  # validation isn't training time

    def configure_optimizers(self) -> Any:
        optimizer = self.fresh_optimizer()
        factor = partial(learning_rate_factor, config=self.config, total_steps=self.total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
