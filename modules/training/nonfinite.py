"""A step whose loss or gradient is NaN or infinite: it never reaches the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from ..data.datamodule import TextDataModule
from ..data.packing import StepBatch

SHOWN_ROWS = 5

MOST_SKIPPED = 20
"""Steps in a row that on_nonfinite=skip skips: after that nothing is being trained any more."""

logger = logging.getLogger("moyun.training")


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became NaN or infinite; raised before the step could spoil the weights."""


@dataclass
class SkippedSteps:
    """How many steps train.on_nonfinite=skip has left out of this run, and how many of them just now in a row."""

    steps: int = 0
    in_a_row: int = 0

    def skip(self, what: str, parameters: Iterable[nn.Parameter]) -> None:
        """Empties the gradients: the optimizer then does nothing. NonFiniteLossError after too many in a row."""
        self.steps += 1
        self.in_a_row += 1
        if self.in_a_row > MOST_SKIPPED:
            raise refusal(what, f"; {MOST_SKIPPED} steps before it were skipped")
        logger.warning("%s: the step is skipped, the %d. of this run", what, self.steps)
        for parameter in parameters:
            parameter.grad = None  # zeros would still decay the weights and move the moments


def refusal(what: str, before: str = "") -> NonFiniteLossError:
    return NonFiniteLossError(
        f"{what}{before}; the weights before this step are untouched. Look at these rows; else try a lower "
        "train.learning_rate, more train.warmup_steps, trainer.precision=32-true, or train.on_nonfinite=skip"
    )


def rows_in(data: TextDataModule, step: StepBatch, losses: Tensor, loss_is_finite: bool) -> str:
    """The rows of this rank's passes whose loss isn't finite; all of its rows where only the gradient isn't."""
    documents = [
        int(document)
        for batch, loss in zip(step.micro_batches, losses.tolist(), strict=True)
        if loss_is_finite or not math.isfinite(loss)
        for document in batch.documents
    ]
    if not documents:
        return "in another rank's rows"
    shown = ", ".join(f"{document} “{data.beginning(document)}”" for document in documents[:SHOWN_ROWS])
    more = f" and {len(documents) - SHOWN_ROWS} more" if len(documents) > SHOWN_ROWS else ""
    return f"training documents {shown}{more}"
