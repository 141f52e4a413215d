"""What is said of each source of a mixture before training: its share of the steps, and how often it will be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...data.datamodule import TextDataModule

if TYPE_CHECKING:
    from .plan import TrainingPlan

MANY_PASSES = 4
"""Up to so many passes over the same rows are worth nearly as much as new rows (Muennighoff et al. 2023)."""


@dataclass(frozen=True)
class SourceFacts:
    name: str
    rows: int
    tokens: int
    """That are trained on, once."""
    weight: float
    """Asked for, as a share."""
    taken: int
    """Trained tokens in the first epoch of the mixture,"""
    share: float
    """and as a share of all in it."""
    prompt_template: str | None

    def passes(self, epochs: float) -> float:
        """How often its rows are read in so many epochs of the mixture."""
        return epochs * self.taken / self.tokens

    def describe(self, plan: TrainingPlan) -> str:
        passes, facts = self.passes(plan.epochs), plan.splits.get(f"train/{self.name}")
        place = f" of {facts.place} ({facts.kind})" if facts else ""
        many = f", over {MANY_PASSES}: repeated rows teach less and less" if passes > MANY_PASSES else ""
        template = f"; prompt {self.prompt_template!r}" if self.prompt_template else ""
        return (
            f"{self.rows:,} rows{place}, {self.tokens:,} tokens; weight {self.weight:.4g}, "
            f"gets {self.share:.4f}; read {passes:.2f} times{many}{template}"
        )


def facts_of_sources(data: TextDataModule) -> tuple[SourceFacts, ...]:
    """None where there is no mixture."""
    if not (mixture := data.mixture):
        return ()
    order = np.concatenate(data.first_epoch.plan)
    taken = mixture.counts(order, data.documents["train"].trained_tokens[order]).tolist()
    shares = [tokens / sum(taken) for tokens in taken]
    parts = [data.parts[f"train/{name}"] for name in mixture.names]
    templates = [data.tokenizers[name].prompt_template for name in mixture.names]
    facts = zip(mixture.names, parts, data.tokens_of_sources, mixture.weights, taken, shares, templates, strict=True)
    return tuple(SourceFacts(name, part.rows, *rest) for name, part, *rest in facts)
