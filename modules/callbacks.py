"""What happens beside the training loop: progress on the terminal, sample texts at each validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from .config import GenerationConfig
from .text_generation import TextGenerator, generation_config
from .tokenizer import Tokenizer


class Progress(TQDMProgressBar):
    """A line with loss and speed. Refreshed rarely: drawing it must not cost training time."""

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=10)
        self.stage = stage

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.set_description(self.stage)
        return bar

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
        expected = trainer.strategy.broadcast(self.facts)
        if self.facts != expected:
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
        results = generator.write(self.prompts, generation_config(self.config, seed=seed))
        pl_module.train(training)
        for prompt, result in zip(self.prompts, results, strict=True):
            text = prompt + result.text if self.tokenizer.prompt_template is None else result.text
            row = {"step": trainer.global_step, "prompt": prompt, "text": text, "stopped": result.stopped}
            self.table.append(row)
        if trainer.logger:
            share = sum(result.stopped for result in results) / len(results)
            trainer.logger.log_metrics({"val/samples_stopped": share}, step=trainer.global_step)
