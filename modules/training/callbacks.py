"""What happens beside the training loop: checkpoints and which of them stay, stopping, progress, sample texts."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, TQDMProgressBar

from ..config.generation import GenerationConfig
from ..config.training import LOSS
from ..inference.text_generator import TextGenerator
from ..model.decoder import Decoder
from ..system.atomic import remove_folder, write_link
from ..system.signals import StopRequest
from ..tokenizer.tokenizer import Tokenizer
from .lightning_module import LanguageModel
from .planning.plan import Course


class ProgressLine(TQDMProgressBar):
    """A line with loss and speed. Refreshed rarely: drawing it must not cost training time."""

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=10)
        self.stage = stage

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.set_description(self.stage)
        return bar

    def on_train_epoch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        super().on_train_epoch_start(trainer, *arguments)
        self.train_progress_bar.set_description(self.stage)  # to Lightning all passes over the rows are "Epoch 0"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        latest: dict[str, float] = getattr(pl_module, "latest", {})
        shown = {"loss": "train/loss", "tokens/s": "train/tokens_per_second"}
        metrics = {name: f"{latest[key]:.4g}" for name, key in shown.items() if key in latest}
        if "val/loss" in trainer.callback_metrics:
            metrics["val"] = f"{float(trainer.callback_metrics['val/loss']):.3f}"
        return metrics


class SameOnAllRanks(pl.Callback):
    """Each process reads the data and trains or loads the tokenizer itself: what came out must be the same."""

    def __init__(self, facts: tuple[Any, ...]) -> None:
        self.facts = facts

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.facts != (expected := trainer.strategy.broadcast(self.facts)):
            raise ValueError(
                f"this process's tokenizer, steps and tokens ({self.facts}) aren't those of rank 0 ({expected}): "
                "give all machines the same files and package versions"
            )


class Samples(pl.Callback):
    """Continues fixed prompts at each validation, so that one can read what the numbers mean."""

    def __init__(self, tokenizer: Tokenizer, prompts: Sequence[str], config: GenerationConfig, seed: int) -> None:
        self.tokenizer = tokenizer
        self.prompts = list(prompts)
        self.config = config
        self.seed = seed
        self.table: list[dict[str, Any]] = []
        """Rows with step, prompt, text, and stopped: whether the model ended it by itself."""

    def state_dict(self) -> dict[str, Any]:
        return {"table": self.table}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.table = [{"stopped": None} | row for row in state_dict["table"]]  # which older checkpoints don't have

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.prompts:
            return  # otherwise all ranks take part: where weights are spread they must, and none has to wait
        training = pl_module.training
        generator = TextGenerator(pl_module.decoder, self.tokenizer, self.config)  # type: ignore[arg-type]
        seed = self.seed if self.config.seed is None else self.config.seed
        rows = generator.samples(self.prompts, dataclasses.replace(self.config, seed=seed))
        pl_module.train(training)
        self.table += [{"step": trainer.global_step} | row for row in rows]
        if trainer.logger:
            share = sum(row["stopped"] for row in rows) / len(rows)
            trainer.logger.log_metrics({"val/samples_stopped": share}, step=trainer.global_step)


@dataclass(frozen=True)
class Selection:
    """What the best checkpoint is chosen by, and early stopping watches: one of the metrics of a validation."""

    metric: str = LOSS
    higher_is_better: bool = False
    texts: str = ""
    """What is written for it, in words."""
    score: Callable[[Decoder, Callable[[], None]], dict[str, float]] | None = None
    """Writes and scores texts: metric → value. It calls its second argument now and then, so that a stop asked for
    meanwhile is obeyed. None: the metric takes no texts."""
    seconds: list[float] = field(default_factory=list)
    """What each scoring took."""

    def order(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """A key to sort validations by, best first; of equals the one with the lower loss."""
        value, loss = metrics.get(self.metric, math.nan), metrics[LOSS]
        value = -value if self.higher_is_better else value
        return math.inf if math.isnan(value) else value, math.inf if math.isnan(loss) else loss

    def describe(self, step: int) -> str:
        """Of the chosen checkpoint, once there is one."""
        took = f"; {max(self.seconds):.1f} s a validation at most" if self.seconds else ""
        texts = f" ({self.texts}{took})" if self.texts else ""
        return f"{self.metric}, {'highest' if self.higher_is_better else 'lowest'} at step {step}{texts}"


def score_texts(selection: Selection, module: LanguageModel) -> dict[str, float]:
    """What texts that the model writes now are worth; all ranks write the same, and the first one's values count.

    Each row's text hangs on its prompt alone, and no generator of random numbers that training uses is touched.
    """
    assert selection.score
    began = time.perf_counter()
    try:
        found = selection.score(module.decoder, module.leave_if_asked)
    except FloatingPointError:  # the model's probabilities aren't numbers: worse than any other
        found = {selection.metric: math.nan}
    selection.seconds.append(time.perf_counter() - began)
    return dict(module.trainer.strategy.broadcast(found))


NAME = re.compile(r"step=(\d+)\.ckpt")


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Step → checkpoint of a run's folder of checkpoints, in order of steps."""
    found = {int(m[1]): path for path in folder.glob("step=*.ckpt") if (m := NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


class QuietEarlyStopping(EarlyStopping):
    """Goes on with what it has seen, and with the patience that it has now."""

    def __init__(self, selection: Selection, patience: int) -> None:
        # A measure of texts may be undefined (no bigrams in empty texts), which is no more than not better.
        undefined_stops = selection.score is None
        mode = "max" if selection.higher_is_better else "min"
        super().__init__(selection.metric, patience=patience, mode=mode, check_finite=undefined_stops)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})


class Checkpoints(pl.Callback):
    """A checkpoint before each validation, every save_every_n_steps, after the last step, and when a stop is asked for.

    A run that goes on from one written before a validation validates first, so none is lost. The newest stays, which
    last.ckpt links to, and the `keep` that validated best.
    """

    def __init__(
        self, folder: Path, course: Course, save_every: int | None, keep: int, key: str, selection: Selection
    ) -> None:
        """key: what the command calls the folder that `folder` lies in."""
        self.folder = folder
        self.key = key
        self.selection = selection
        self.course = course
        self.save_every = save_every
        self.keep = keep
        self.stop = StopRequest()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The first rank's course is everyone's: it alone knows which checkpoint the run goes on from."""
        assert isinstance(pl_module, LanguageModel)
        self.course = course = trainer.strategy.broadcast(self.course)
        trainer.datamodule.start = course.start  # type: ignore[attr-defined]
        trainer.val_check_interval = course.validate_every
        trainer.fit_loop.epoch_loop.max_steps = pl_module.total_steps = course.total_steps
        pl_module.validation_offset = course.offset

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        pl_module.stop = self.stop
        self.stop.listen()
        if step := trainer.global_step:
            self.stop.message = self.where(step)
        due = self.course.validates_after(step) if step else self.course.validates_first
        if due and step not in pl_module.validations:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LanguageModel)
        step = trainer.global_step
        asked_for = self.save_every is not None and step % self.save_every == 0
        due = asked_for or self.course.validates_after(step) or step == trainer.max_steps
        if due or pl_module.stop_agreed:
            self.save(trainer, step)
            self.stop.message = self.where(step)
            self.prune(trainer, pl_module.validations)
            self.tell(trainer)
        if pl_module.stop_agreed:
            self.stop.leave()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.listen()  # outside of fit Lightning has put its own handler there

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        self.prune(trainer, pl_module.validations)
        self.tell(trainer)

    def save(self, trainer: pl.Trainer, step: int) -> None:
        path = self.folder / f"step={step}.ckpt"
        for logger in trainer.loggers:
            logger.save()  # first: a run that goes on from here logs none of the steps before
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            write_link(self.folder / "last.ckpt", path.name)

    def prune(self, trainer: pl.Trainer, validations: Mapping[int, Mapping[str, float]]) -> None:
        if not trainer.is_global_zero or self.keep < 0:
            return
        paths = checkpoints_in(self.folder)
        wanted = {*best_first(paths, validations, self.selection)[: self.keep], max(paths, default=0)}
        for step in paths.keys() - wanted:
            remove_folder(paths[step])

    def tell(self, trainer: pl.Trainer) -> None:
        """Says to the loggers that other checkpoints are there than before."""
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)  # type: ignore[arg-type]

    def best(self, validations: Mapping[int, Mapping[str, float]]) -> int:
        """The step of the checkpoint that validates best."""
        paths = checkpoints_in(self.folder)
        return next(iter(best_first(paths, validations, self.selection)), max(paths))

    def where(self, step: int) -> str:
        return f"stopped at step {step}; the same command with {self.key}={self.folder.parent} goes on from there"


def best_first(
    paths: Mapping[int, Path], validations: Mapping[int, Mapping[str, float]], selection: Selection
) -> list[int]:
    """Steps with a checkpoint and a validation, best first; of equals the later one."""
    validated = [step for step in paths if step in validations]
    return sorted(validated, key=lambda step: (selection.order(validations[step]), -step))
