"""What prefer can be told beside what every training can: which loss of pairs, and how strongly they count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..base import not_positive
from ..training import TrainingConfig


@dataclass
class PreferenceConfig:
    """How a chosen answer is preferred to a rejected one (docs/recipes.md)."""

    loss: Literal["dpo", "orpo"] = "dpo"
    """dpo (Rafailov et al. 2023): beside the model that training starts from; orpo (Hong et al. 2024): without one,
    and the chosen texts are learnt as fine-tuning learns them."""
    beta: float = 0.1
    """dpo: how far the model is held to the one it starts from (the larger, the nearer). orpo: the weight of the
    preference beside the chosen texts (λ in the paper)."""

    def __str__(self) -> str:
        """For the plan."""
        beside = (
            "beside the model that training starts from" if self.loss == "dpo" else "beside the chosen texts' own loss"
        )
        return f"{self.loss}, beta {self.beta:g}, {beside}"

    def complaints(self) -> Iterator[str]:
        yield from not_positive(self, "beta")


@dataclass
class PreferConfig(TrainingConfig):
    """From a model folder (train.init_from) to one that prefers better answers: rows of prompt, chosen, rejected."""

    preference: PreferenceConfig = field(default_factory=PreferenceConfig)

    def complaints(self) -> Iterator[str]:
        if self.data.mix:
            yield "data.mix: preferences are learnt from one source; give data.path=FILE"
        if self.train.init_from:
            yield from super().complaints()
        else:
            yield (
                "train.init_from must be given, a model folder or models:/ URI: preferences are learnt by a model that "
                "can answer already"
            )
