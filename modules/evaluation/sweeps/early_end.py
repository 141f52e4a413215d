"""What a sweep watches of a training: its metric at each validation, by which it may end the trial."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from ...training.lightning_module import LanguageModel
from .study import Study
from .trial_outcome import STOPPED_AT


class UnknownMetricError(ValueError):
    """The sweep's metric isn't among those that trials have: no trial would be any better."""


def value_of(metrics: dict[str, Any], metric: str) -> float:
    if metric not in metrics:
        raise UnknownMetricError(f"metric={metric} isn't measured; there are {', '.join(sorted(metrics))}")
    return float(metrics[metric])


class EarlyEnd(pl.Callback):
    """Tells the study of each validation; ends the training where the pruner says so."""

    def __init__(self, study: Study, number: int) -> None:
        self.study, self.number = study, number
        trial_id = study.optuna_study.get_trials(deepcopy=False)[number]._trial_id
        self.trial: Any = study.optuna.trial.Trial(study.optuna_study, trial_id)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        if trainer.state.fn != TrainerFn.FITTING:  # the last steps' validation, when training is over
            return
        step, done = trainer.global_step, len(pl_module.validations)
        value = value_of(pl_module.validations[step], self.study.config.metric)
        if done - 1 not in self.study.optuna_study.get_trials(deepcopy=False)[self.number].intermediate_values:
            self.trial.report(value, done - 1)  # what went on with an earlier process's checkpoint may have told it
        if step < trainer.max_steps and self.trial.should_prune():
            self.study.keep(self.number, STOPPED_AT, step)
            trainer.should_stop = True
