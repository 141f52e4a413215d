"""How cost grows: points of a curve, and the slope of a straight line through their logarithms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from modules.config.loader import load_config
from modules.config.model import ModelConfig
from modules.model.decoder import build_decoder
from modules.model.loss import linear_cross_entropy
from modules.training.planning.flops import flops_per_token

from .work import Work

TOLERANCE = 0.15
"""How far the slope may be above 1 before a cost counts as growing faster than it should: noise moves it by less."""

SHORT, MEDIUM = 32, 256
"""Tokens of a document in the curves of batches and of sizes."""


@dataclass(frozen=True)
class Curve:
    name: str
    axis: str
    points: list[Any]
    costs: list[float]
    """What seconds should be proportional to: floating-point operations, or rows."""
    seconds: list[float]

    @property
    def slope(self) -> float:
        """Of log(seconds) over log(cost) in the upper half (three points at least): 1 is as it should be.

        Below, fixed costs make a curve flat, and would hide what grows too fast further up.
        """
        upper = max(3, (len(self.points) + 1) // 2)
        return fitted_slope(self.costs[-upper:], self.seconds[-upper:])

    @property
    def verdict(self) -> str:
        return "grows faster than it should" if self.slope > 1 + TOLERANCE else "as it should"


def fitted_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent p of the power law y = a·x^p that fits best in least squares of logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


class Trainee:
    """A decoder of random weights and its optimizer, for steps of any shape on random ids."""

    def __init__(self, model: dict[str, Any], seed: int) -> None:
        config = ModelConfig(**{name: model[name] for name in ModelConfig.__dataclass_fields__})
        self.model = model
        self.decoder = build_decoder(config, seed).train()
        self.optimizer = torch.optim.AdamW(self.decoder.parameters(), 1e-4, fused=True)

    def step(self, rows: int, length: int) -> None:
        """Forward, backward and optimizer on `rows` documents of `length` tokens."""
        ids = torch.randint(self.model["vocab_size"], (1, rows * length))
        head = partial(linear_cross_entropy, labels=ids)
        (self.decoder(ids, [length] * rows, head=head) / ids.numel()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def point(self, rows: int, length: int) -> tuple[Callable[[], object], float]:
        """(a step, its floating-point operations)"""
        return partial(self.step, rows, length), rows * length * flops_per_token(self.model, length / 2)


def training_points(work: Work, curve: str, points: Sequence[Any]) -> list[tuple[Callable[[], object], float]]:
    """(a training step, its floating-point operations) of each sequence length, number of rows, or size's name."""
    if curve == "sizes":
        kept = [f"model.{name}={work.model[name]}" for name in ("vocab_size", "max_position_embeddings")]
        sizes = (load_config("pretrain", [f"model={size}", "data.sequence_length=2", *kept]).model for size in points)
        return [Trainee(asdict(size), work.seed).point(1, MEDIUM) for size in sizes]
    trainee = Trainee(work.model, work.seed)
    return [trainee.point(*((1, point) if curve == "sequence_lengths" else (point, SHORT))) for point in points]
