"""From fresh weights to a language model, on plain text."""

from __future__ import annotations

from modules.config import TrainingConfig
from modules.rows import RowSource

from .command_line import run_stage
from .train import TrainResult, train


def pretrain(config: TrainingConfig, rows: RowSource | None = None) -> TrainResult:
    """`rows` stands in for data.path: a Dataset, {"src_txt": […]}, or what modules.rows.load_rows takes."""
    return train("pretrain", config, rows)


if __name__ == "__main__":
    run_stage("pretrain", pretrain)
