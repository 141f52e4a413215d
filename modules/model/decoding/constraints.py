"""Which tokens a row may be written with: a mask on its logits, after all penalties; torch only.

B: rows, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Constraint(Protocol):
    """What a row must keep to, at one place of it; never changed."""

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """By token id, whether it may come next; of ids beyond its end none may. At least one may."""

    @property
    def given_up(self) -> bool:
        """Whether the text couldn't be held to it any longer, and was broken off by the end-of-text."""

    def after(self, token: int) -> Constraint:
        """The same after a token that was allowed."""


def mask(logits: Tensor, constraints: Sequence[Constraint | None]) -> Tensor:
    """logits (B, V) → -inf for what a row's constraint doesn't allow; they stay as they are where no row has one."""
    if not any(constraints):
        return logits
    refused = torch.zeros(logits.shape, dtype=torch.bool)
    for row, constraint in enumerate(constraints):
        if constraint:
            found = torch.from_numpy(constraint.allowed)
            refused[row, : len(found)] = ~found
            refused[row, len(found) :] = True
    return logits.masked_fill(refused.to(logits.device), -torch.inf)
