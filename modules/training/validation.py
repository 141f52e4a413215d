"""What a validation adds up, and the metrics that it comes to: the loss, and how well the model has learnt to stop.

A model that doesn't stop by itself writes on until it is cut off, and no loss tells: an end-of-text is one label of a
whole row. So its part of the loss is kept apart, and whether it would be written, greedily, where a text ends and
where it doesn't.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..data.packing import MicroBatch
from ..model.loss import perplexity_of


@dataclass
class Validation:
    """Sums over micro-batches, and over ranks."""

    nll: float = 0.0
    end_nll: float = 0.0
    ends_found: float = 0.0
    false_ends: float = 0.0
    tokens: float = 0.0
    characters: float = 0.0
    ends: float = 0.0

    def add(self, batch: MicroBatch, found: Tensor) -> None:
        """found: (4,), from loss.stopping_cross_entropy."""
        nll, end_nll, ends_found, false_ends = found.tolist()
        self.nll += nll
        self.end_nll += end_nll
        self.ends_found += ends_found
        self.false_ends += false_ends
        self.tokens += batch.trained_tokens
        self.characters += batch.characters
        self.ends += batch.ends

    def metrics(self) -> dict[str, float]:
        metrics = {
            "val/loss": self.nll / self.tokens,
            "val/perplexity": perplexity_of(self.nll / self.tokens),
            "val/perplexity_per_char": perplexity_of(self.nll / (self.characters + self.ends)),
        }
        if self.ends:
            metrics["val/end_of_text_nll"] = self.end_nll / self.ends
            metrics["val/end_of_text_found"] = self.ends_found / self.ends
        if self.tokens > self.ends:
            metrics["val/end_of_text_early"] = self.false_ends / (self.tokens - self.ends)
        return metrics
