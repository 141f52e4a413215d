"""What a training run will do, worked out before it does anything: sizes, steps, memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import ModelConfig, SizeConfig, TrainConfig, TrainingConfig
from .data import TextDataModule
from .decoder import parameter_count

BYTES = {"32-true": 4, "bf16-mixed": 4, "bf16-true": 2}
"""A weight's bytes by trainer.precision; AdamW keeps two more of the same, and there is a gradient."""


@dataclass(frozen=True)
class TrainingPlan:
    parameters: int
    rows: int
    rows_cut: int
    rows_split: int
    tokens_per_epoch: int
    tokens_per_step: float
    """Trained tokens, on average."""
    steps_per_epoch: int
    total_steps: int
    learning_rate: float
    """The schedule's peak factor."""
    model_bytes: int
    """Weights, gradients and AdamW's two moments."""
    activation_bytes: int
    """What one forward pass of micro_batch_tokens keeps for the backward pass, estimated."""

    def describe(self) -> dict[str, str]:
        """Label → text, for printing."""
        gib = 2**30
        over_long = f"{self.rows_split:,} split, {self.rows_cut:,} cut" if self.rows_split + self.rows_cut else "none"
        return {
            "parameters": f"{self.parameters:,}",
            "rows": f"{self.rows:,} (over-long: {over_long})",
            "tokens an epoch": f"{self.tokens_per_epoch:,}",
            "tokens a step": f"{self.tokens_per_step:,.0f}",
            "steps": f"{self.total_steps:,} ({self.total_steps / self.steps_per_epoch:.2f} epochs)",
            "learning rate": f"{self.learning_rate:g}",
            "memory": (
                f"{(self.model_bytes + self.activation_bytes) / gib:.2f} GiB: weights, gradients and optimizer "
                f"{self.model_bytes / gib:.2f}, activations {self.activation_bytes / gib:.2f} (estimated)"
            ),
        }


def make_plan(config: TrainingConfig, model: ModelConfig, data: TextDataModule) -> TrainingPlan:
    documents = data.documents["train"]
    tokens = int(documents.trained_tokens.sum())
    steps_per_epoch = data.steps_per_epoch
    total_steps = min(
        config.train.max_steps or math.inf,
        steps_per_epoch * config.train.max_epochs if config.train.max_epochs else math.inf,
    )
    parameters = parameter_count(model)
    longest = int(documents.lengths.max())
    pass_tokens = max(min(config.train.micro_batch_tokens, int(documents.lengths.sum())), longest)
    return TrainingPlan(
        parameters=parameters,
        rows=documents.rows,
        rows_cut=documents.rows_cut,
        rows_split=documents.rows_split,
        tokens_per_epoch=tokens,
        tokens_per_step=tokens / steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        total_steps=int(total_steps),
        learning_rate=peak_learning_rate(config),
        model_bytes=4 * parameters * BYTES[config.trainer.precision],
        activation_bytes=activation_bytes(model, pass_tokens, 4 if config.trainer.precision == "32-true" else 2),
    )


def activation_bytes(model: ModelConfig, tokens: int, element: int) -> int:
    """Kept a token and layer, in hidden sizes: two LayerNorm inputs and outputs (4), q, k, v (3), attention (1),
    before and after GELU (8)."""
    return tokens * model.hidden_size * (16 * model.num_hidden_layers + 4) * element


def peak_learning_rate(config: TrainingConfig) -> float:
    """train.learning_rate, else the model size's own."""
    rate = config.train.learning_rate
    if rate is None and config.model:
        rate = config.model.learning_rate
    assert rate is not None, "TrainingConfig.complaints sees to it"
    return rate


def batch_of(train: TrainConfig, size: SizeConfig | None) -> dict[str, int | None]:
    """{"batch_size": …, "batch_tokens": …}, one of them set: what train says, else the model size's own."""
    if train.batch_size or train.batch_tokens:
        return {"batch_size": train.batch_size, "batch_tokens": train.batch_tokens}
    assert size, "TrainingConfig.complaints sees to it"
    return {"batch_size": None, "batch_tokens": size.batch_tokens}
