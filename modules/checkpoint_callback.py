"""When checkpoints are written during training, which of them stay, and how a run is stopped and gone on with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from .lightning_module import LanguageModel
from .processes import StopRequest
from .strategies import remove_folder

LAST = "last.ckpt"
"""A link to the newest."""
NAME = re.compile(r"step=(\d+)\.ckpt")


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Step → checkpoint of a run's folder of checkpoints, in order of steps."""
    found = {int(m[1]): path for path in folder.glob("step=*.ckpt") if (m := NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


class Patience(EarlyStopping):
    """Goes on with what it has seen, and with the patience that it has now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})


class Checkpoints(pl.Callback):
    """A checkpoint before each validation, every save_every_n_steps, after the last step, and when a stop is asked for.

    Before a validation, so that nothing is lost when it is broken off: whoever goes on from there validates first.
    Only whole steps are saved. The newest stays, and the `keep` that validated best; a link always leads to the newest.
    """

    def __init__(self, folder: Path, validate_every: int, save_every: int | None, keep: int, key: str) -> None:
        """key: what the command calls the folder that `folder` lies in."""
        self.folder = folder
        self.key = key
        self.validate_every = validate_every
        self.save_every = save_every or validate_every
        self.keep = keep
        self.stop = StopRequest()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        pl_module.stop = self.stop
        self.stop.listen()
        step = trainer.global_step
        if step:
            self.stop.message = self.where(step)
        if step and step % self.validate_every == 0 and step not in pl_module.validations:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LanguageModel)
        step = trainer.global_step
        due = step % self.validate_every == 0 or step % self.save_every == 0 or step == trainer.max_steps
        if due or pl_module.stop_agreed:
            self.save(trainer, step)
            self.stop.message = self.where(step)
            self.prune(trainer, pl_module.validations)
        if pl_module.stop_agreed:
            self.stop.leave()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.listen()  # outside of fit Lightning has put its own handler there

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        self.prune(trainer, pl_module.validations)

    def save(self, trainer: pl.Trainer, step: int) -> None:
        path = self.folder / f"step={step}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            link = self.folder / f".{LAST}.tmp"
            link.unlink(missing_ok=True)
            link.symlink_to(path.name)
            link.replace(self.folder / LAST)
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)  # type: ignore[arg-type]  # Lightning's own callback isn't used

    def prune(self, trainer: pl.Trainer, validations: Mapping[int, Mapping[str, float]]) -> None:
        if not trainer.is_global_zero or self.keep < 0:
            return
        paths = checkpoints_in(self.folder)
        wanted = {*by_loss(paths, validations)[: self.keep], max(paths, default=0)}
        for step in paths.keys() - wanted:
            remove_folder(paths[step])

    def best(self, validations: Mapping[int, Mapping[str, float]]) -> int:
        """The step of the checkpoint that validates best; of equals the later one."""
        paths = checkpoints_in(self.folder)
        return (by_loss(paths, validations) or list(paths)[-1:])[0]

    def where(self, step: int) -> str:
        return f"stopped at step {step}; the same command with {self.key}={self.folder.parent} goes on from there"


def by_loss(paths: Mapping[int, Path], validations: Mapping[int, Mapping[str, float]]) -> list[int]:
    """Steps with a checkpoint and a validation, best first."""
    losses = {step: validations[step]["val/loss"] for step in paths if step in validations}
    return sorted(losses, key=lambda step: (losses[step] if not math.isnan(losses[step]) else math.inf, -step))
