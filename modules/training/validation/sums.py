"""The sums of a validation, and the metrics that they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...config.training import BY_SOURCE
from ...data.packing import MicroBatch
from ...model.loss import perplexity_of
from ...tokenizer.lost_text import NATS_A_BYTE


@dataclass
class Validation:
    """Sums over micro-batches and ranks, and the metrics that they come to.

    A model that doesn't stop by itself writes on until it is cut off, and no loss tells: an end-of-text is one label of
    a whole row. So its part of the loss is kept apart, and whether it would be written, greedily, where a text ends and
    where it doesn't.
    """

    nll: float = 0.0
    end_nll: float = 0.0
    ends_found: float = 0.0
    false_ends: float = 0.0
    tokens: float = 0.0
    characters: float = 0.0
    ends: float = 0.0
    lost_bytes: float = 0.0

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
        self.lost_bytes += batch.lost_bytes

    def metrics(self) -> dict[str, float]:
        spelt = self.nll + self.lost_bytes * NATS_A_BYTE
        metrics = {
            "val/loss": self.nll / self.tokens,
            "val/perplexity": perplexity_of(self.nll / self.tokens),
            "val/perplexity_per_char": perplexity_of(spelt / max(1.0, self.characters + self.ends)),
        }
        if self.ends:
            metrics["val/end_of_text_nll"] = self.end_nll / self.ends
            metrics["val/end_of_text_found"] = self.ends_found / self.ends
        if self.tokens > self.ends:
            metrics["val/end_of_text_early"] = self.false_ends / (self.tokens - self.ends)
        return metrics


def metrics_of_all(names: Sequence[str], totals: Sequence[Validation], weights: Sequence[float]) -> dict[str, float]:
    """Of each source of a mixture, and of the whole: the sources' mean by weight, of perplexities the geometric one."""
    found = [total.metrics() for total in totals]
    whole = {}
    for key in dict.fromkeys(key for metrics in found for key in metrics):
        known = [(metrics[key], weight) for metrics, weight in zip(found, weights, strict=True) if key in metrics]
        values, shares = zip(*known, strict=True)
        geometric = "perplexity" in key
        mean = np.average(np.log(values) if geometric else values, weights=shares)
        whole[key] = float(np.exp(mean) if geometric else mean)
    own = zip(names, found, strict=True)
    return whole | {f"val/{name}/{key}": metrics[f"val/{key}"] for name, metrics in own for key in BY_SOURCE}
