"""What tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.data.packing import StepBatch
from modules.training.lightning_module import LanguageModel


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, store: Path) -> list[list[int]]:
    """The documents of each step that is taken, in order."""
    steps: list[list[int]] = []
    training_step = LanguageModel.training_step

    def recorded(self: LanguageModel, step: StepBatch, batch_idx: int) -> None:
        steps.append(sorted(int(n) for batch in step.micro_batches for n in batch.documents))
        training_step(self, step, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", recorded)
    return steps
