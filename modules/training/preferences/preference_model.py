"""The decoder on pairs of answers: another loss and other metrics than LanguageModel has, all else is the same.

There is one copy of the model. What the model that training starts from thinks of the answers is computed once, before
the first step, and kept as a number an answer: a second copy, or adapters switched off, would cost memory or a pass in
every step of every epoch, for the same numbers.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from ...config.preferences.preference import PreferenceConfig
from ...data.packing import MicroBatch, StepBatch, StepDataset, in_order
from ...data.preferences.pair_packing import PairBatch, Pairs
from ...model.loss import perplexity_of, token_nll
from ..determinism import deterministic_kernels
from ..lightning_module import LanguageModel
from .pair_losses import PairLosses, answer_log_probabilities, pair_losses


@dataclass
class PairSums:
    """Sums over micro-batches and ranks, and the metrics that they come to."""

    preference: float = 0.0
    chosen: float = 0.0
    rejected: float = 0.0
    right: float = 0.0
    nll: float = 0.0
    """Of the chosen texts, of which so many tokens are trained on."""
    tokens: float = 0.0
    pairs: float = 0.0

    def add(self, batch: PairBatch, found: PairLosses) -> None:
        values = torch.stack([found.preference.sum(), *reward_sums(found), found.nll]).tolist()
        counts = batch.chosen_tokens, batch.pairs
        for entry, value in zip(fields(self), [*values, *counts], strict=True):
            setattr(self, entry.name, getattr(self, entry.name) + value)

    def metrics(self, learns_chosen: bool) -> dict[str, float]:
        """learns_chosen: the chosen texts' loss is a part of it all (ORPO)."""
        nll = self.nll / self.tokens
        return {
            "val/loss": self.preference / self.pairs + nll * learns_chosen,
            "val/perplexity": perplexity_of(nll),
            **rewards("val", self.chosen, self.rejected, self.right, self.pairs),
        }


def reward_sums(found: PairLosses) -> list[Tensor]:
    """Of chosen answers, of rejected ones, and how often the first is above the second."""
    return [found.chosen.sum(), found.rejected.sum(), (found.chosen > found.rejected).sum().to(found.nll.dtype)]


def rewards(prefix: str, chosen: float, rejected: float, right: float, pairs: float) -> dict[str, float]:
    """The sums as metrics."""
    return {
        f"{prefix}/reward_accuracy": right / pairs,
        f"{prefix}/reward_margin": (chosen - rejected) / pairs,
        f"{prefix}/reward_chosen": chosen / pairs,
        f"{prefix}/reward_rejected": rejected / pairs,
    }


class PreferenceModel(LanguageModel):
    """A batch is a step of pairs; the loss is divided by how many the whole step has, however it is split."""

    def __init__(self, *arguments: Any, preference: PreferenceConfig) -> None:
        """arguments: LanguageModel's."""
        super().__init__(*arguments)
        self.preference = preference
        self.sums = PairSums()
        self.pairs, self.chosen_tokens, self.answer_tokens = 0.0, 0.0, 0
        """Of the step under way, on all ranks."""
        self.rewards = torch.zeros(3)
        """As `reward_sums`, of the step under way on this rank."""

    @property
    def learns_chosen(self) -> bool:
        return self.preference.loss == "orpo"

    def configure_model(self) -> None:
        """The decoder has the weights that training starts from just now: a checkpoint is loaded later."""
        fresh = self.decoder.word_embeddings.weight.is_meta
        super().configure_model()
        if not fresh or self.learns_chosen:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        with deterministic_kernels(self.deterministic and self.trainer.strategy.root_device.type == "cuda"):
            for name, pairs in data.documents.items():
                steps = in_order(pairs, data.micro_batch_tokens, **data.share())
                data.documents[name] = replace(pairs, reference=self.log_probabilities(pairs, steps))

    @torch.no_grad()
    def log_probabilities(self, pairs: Pairs, steps: StepDataset) -> np.ndarray:
        """Of each pair's answers, as the decoder has them now, (pairs, 2) float32; ranks share the work."""
        device, trains = self.trainer.strategy.root_device, self.decoder.training
        found = torch.zeros(len(pairs), 2, device=device)
        self.decoder.eval()
        for number in range(len(steps)):
            with torch.device("cpu"):  # or the strategy would have some tensors made on a GPU
                step = steps[number]
            for batch in step.micro_batches:
                numbers = torch.from_numpy(batch.documents)
                batch = move_data_to_device(batch, device)
                found[numbers.to(device)] = answer_log_probabilities(self.token_nll(batch), batch)[batch.sides].T
        self.decoder.train(trains)
        result: np.ndarray = self.summed(found).cpu().numpy()
        return result

    def token_nll(self, batch: MicroBatch) -> Tensor:
        head = partial(token_nll, labels=batch.labels, trained=batch.trained)
        return self.decoder(batch.input_ids, batch.layout, head=head)

    def losses_of(self, batch: MicroBatch) -> PairLosses:
        assert isinstance(batch, PairBatch)
        return pair_losses(self.token_nll(batch), batch, self.preference)

    def _step(self, batch: MicroBatch) -> Tensor:
        """The batch's part of the step's loss, times the pairs of the whole step."""
        found = self.losses_of(batch)
        self.rewards += torch.stack(reward_sums(found))
        loss = found.preference.sum()
        return loss + found.nll * (self.pairs / self.chosen_tokens) if self.learns_chosen else loss

    def optimizer_step_of(self, step: StepBatch) -> None:
        """Of a whole step's loss, LanguageModel takes what it is divided by for trained tokens: here it is pairs."""
        counts = [[batch.pairs, batch.chosen_tokens] for batch in step.micro_batches if isinstance(batch, PairBatch)]
        totals = torch.tensor(counts, dtype=torch.float64).sum(0)
        self.pairs, self.chosen_tokens = self.summed(totals.to(self.device)).tolist()
        self.rewards = torch.zeros(3, device=self.device)
        self.answer_tokens = step.trained_tokens
        super().optimizer_step_of(replace(step, trained_tokens=round(self.pairs)))

    def log_step(self, loss: float, step: StepBatch, gradient_norm: float, learning_rate: float) -> None:
        super().log_step(loss, replace(step, trained_tokens=self.answer_tokens), gradient_norm, learning_rate)
        chosen, rejected, right = self.summed(self.rewards).tolist()
        found = rewards("train", chosen, rejected, right, self.pairs)
        self.latest |= found
        if self.logger and self.global_step % self.config.log_every_n_steps == 0:
            self.logger.log_metrics(found, step=self.global_step)

    def on_validation_epoch_start(self) -> None:
        self.sums = PairSums()

    def validation_step(self, step: StepBatch, batch_idx: int) -> None:
        self.leave_if_asked()
        for batch in step.micro_batches:
            assert isinstance(batch, PairBatch)
            self.sums.add(batch, self.losses_of(batch))

    def validation_metrics(self) -> dict[str, float]:
        sums = torch.tensor(astuple(self.sums), dtype=torch.float64, device=self.device)
        return PairSums(*self.summed(sums).tolist()).metrics(self.learns_chosen)
