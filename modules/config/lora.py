"""The section of low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .sections import not_positive, out_of_range, too_small

ADAPTABLE = ("query_key_value", "dense", "attention.dense", "dense_h_to_4h", "dense_4h_to_h")
"""Names of a layer's matrices; attention.dense is dense's longer name."""


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): the model is frozen, and small matrices beside its own are trained."""

    rank: int = 0
    """Rank of each adapter; 0: no adapters, all weights are trained."""
    alpha: float = 16
    """An adapter's product is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on what goes into the adapters, in training."""
    target_modules: list[str] = field(default_factory=lambda: ["query_key_value"])
    """Matrices that get one in each layer: query_key_value, dense (attention's), dense_h_to_4h, dense_4h_to_h."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 0, "rank")
        yield from not_positive(self, "alpha")
        yield from out_of_range(self, "dropout")
        for name in self.target_modules:
            if name not in ADAPTABLE:
                yield f"target_modules ({name}) must be of {', '.join(ADAPTABLE)}"
        if not self.rank and self != LoraConfig():
            yield "rank must be given, or no adapters are made of the other keys of lora"
        if self.rank and not self.target_modules:
            yield f"target_modules must name what gets adapters of rank {self.rank}"
