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
    prompt: str = ""
    """How its rows are asked, in words; "" of plain text."""

    def passes(self, epochs: float) -> float:
        """How often its rows are read in so many epochs of the mixture."""
        return epochs * self.taken / self.tokens

    def describe(self, plan: TrainingPlan) -> str:
        passes, facts = self.passes(plan.epochs), plan.splits.get(f"train/{self.name}")
        place = f" of {facts.place} ({facts.kind})" if facts else ""
        many = f", over {MANY_PASSES}: repeated rows teach less and less" if passes > MANY_PASSES else ""
        return (
            f"{self.rows:,} rows{place}, {self.tokens:,} tokens; weight {self.weight:.4g}, "
            f"gets {self.share:.4f}; read {passes:.2f} times{many}{self.prompt}"
        )


def facts_of_sources(data: TextDataModule) -> tuple[SourceFacts, ...]:
    """None where there is no mixture."""
    if not (mixture := data.mixture):
        return ()
    order = np.concatenate(data.first_epoch.plan)
    taken = mixture.counts(order, data.documents["train"].trained_tokens[order]).tolist()
    shares = [tokens / sum(taken) for tokens in taken]
    parts = [data.parts[f"train/{name}"] for name in mixture.names]
    prompts = [prompt_of(name, data) for name in mixture.names]
    facts = zip(mixture.names, parts, data.tokens_of_sources, mixture.weights, taken, shares, prompts, strict=True)
    return tuple(SourceFacts(name, part.rows, *rest) for name, part, *rest in facts)


def prompt_of(name: str, data: TextDataModule) -> str:
    """Which prompts the rows of a source have, and what a model that goes on with texts is told to be asked with."""
    template, usual = data.tokenizers[name].prompt_template, data.tokenizer.prompt_template
    if template is None:
        return ""
    return f"; prompt {template!r}{'' if template == usual else f', asked for by task.name={name}'}"
