"""What a sweep watches of a training: its rows before it begins, and its metric at each validation, by which it may
end the trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from ...config.sweeps.command import SweepConfig
from ...config.training import VALIDATED
from ...data.datamodule import TextDataModule
from ...data.mixing.sources import part_of
from ...training.checkpoints.run_manifest import CHECKPOINTS, read_run_manifest
from ...training.lightning_module import LanguageModel
from .study import Study
from .trial_outcome import STOPPED_AT

Rows = dict[str, str | int]
"""What must be the same of all trials' rows for their scores to be comparable: name → digest or count."""

TRAINING, VALIDATION, SCORED, TOKENIZER = "training rows", "validation rows", "scored characters", "tokenizer"
WEIGHTS = "weights of the sources"

REMEDIES = {
    TRAINING: "give all trials the same",
    VALIDATION: "drop the key from the space; for data.path, give data.validation_path=FILE that all are judged on",
    SCORED: "the validation rows are cut at other places: give a data.sequence_length that each of them fits into",
    WEIGHTS: "they weigh the sources' losses, too: give metric=val/NAME/perplexity_per_char of the source that counts",
    TOKENIZER: "a loss per token can't be compared: give metric=val/perplexity_per_char",
}


class EndsSweepError(ValueError):
    """What is wrong with one trial would be with the others."""


class UnknownMetricError(EndsSweepError):
    """The sweep's metric isn't among those that trials have: no trial would be any better."""


class OtherRowsError(EndsSweepError):
    """A trial's rows, or what is scored of them, aren't the others'."""


def rows_of(config: SweepConfig, fingerprints: Mapping[str, str], data: TextDataModule) -> Rows:
    """What a trial is scored on by the sweep's metric, and trained on where the search doesn't vary that."""
    name = config.metric.partition("/")[2]
    found: Rows = {VALIDATION: joined(fingerprints, "validation")}
    mixture = data.mixture
    if mixture and name in VALIDATED:  # the whole of the sources, by their weights
        found[WEIGHTS] = str(dict(zip(mixture.names, mixture.weights, strict=True)))
    if not any({"data", "prepare"} & set(key.split(".")) for key in config.space):
        found[TRAINING] = joined(fingerprints, "train")
    if name in VALIDATED:
        documents = data.documents["validation"]
        found[SCORED] = int(documents.characters.sum() + documents.ended.sum()) if documents.rows_cut else "all"
    if name.rpartition("/")[2] in ("loss", "perplexity"):
        found[TOKENIZER] = data.tokenizer.with_prompt_template(None).fingerprint
    return found


def joined(fingerprints: Mapping[str, str], split: str) -> str:
    """Of a split's rows, or of those of each source of a mixture."""
    return ",".join(digest for name, digest in fingerprints.items() if part_of(name)[0] == split)


def differences(one: Rows, other: Rows) -> list[str]:
    """Names of what isn't the same."""
    return [name for name in REMEDIES if one.get(name) != other.get(name)]


def value_of(metrics: dict[str, Any], metric: str) -> float:
    if metric not in metrics:
        raise UnknownMetricError(f"metric={metric} isn't measured; there are {', '.join(sorted(metrics))}")
    return float(metrics[metric])


class SameRows(pl.Callback):
    """Ends a sweep whose rows have changed, before a trial is trained on others."""

    def __init__(self, config: SweepConfig, number: int, output_dir: str, expected: Mapping[str, Any] | None) -> None:
        self.config, self.number, self.output_dir, self.expected = config, number, output_dir, expected
        self.found: Rows = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        manifest, data = read_run_manifest(Path(self.output_dir) / CHECKPOINTS), trainer.datamodule  # type: ignore[attr-defined]
        assert manifest
        self.found = rows_of(self.config, manifest.data, data)
        require_same_rows(self.number, self.found, self.expected)


def require_same_rows(number: int, rows: Rows, expected: Mapping[str, Any] | None) -> None:
    """OtherRowsError where a trial's rows aren't those that all have (`of` says whose they are)."""
    if expected and (other := differences(expected["rows"], rows)):
        raise OtherRowsError(
            f"the rows of trial {number} aren't those of {expected['of']}: its {' and '.join(other)} differ, and "
            "scores can't be compared then. If a file has changed since, begin again in another output_dir; if the "
            f"space changes them, {REMEDIES[other[-1]]}"
        )


class EarlyEnd(pl.Callback):
    """Tells the study of each validation; ends the training where the pruner says so."""

    def __init__(self, study: Study, number: int) -> None:
        self.study, self.number = study, number
        trial_id = study.optuna_study.get_trials(deepcopy=False)[number]._trial_id
        self.trial: Any = study.optuna.trial.Trial(study.optuna_study, trial_id)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where a kill came between the pruner's word and the trial's end, the trial goes on: it isn't stopped yet."""
        if self.study.outcome(self.number).stopped_at is not None:
            self.study.keep(self.number, STOPPED_AT, None)

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
