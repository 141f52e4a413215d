"""Where Lightning's loops go on counting in a run that is gone on with."""

from __future__ import annotations

import pytorch_lightning as pl


def count_on(trainer: pl.Trainer, step: int, offset: int = 0) -> None:
    """Lightning counts on from a finished step; its loader gives the steps after it (TextDataModule).

    It validates by its count of batches, to which offset is added.

    All training is one epoch to Lightning: the state of its loops, with a case of its own for every moment at which a
    checkpoint may be written, is neither saved nor restored.
    """
    loop = trainer.fit_loop.epoch_loop
    steps, batches = loop.manual_optimization.optim_step_progress.total, loop.batch_progress.total
    for count, number in ((steps, step), (batches, step + offset)):
        for name in vars(count):
            setattr(count, name, number)
