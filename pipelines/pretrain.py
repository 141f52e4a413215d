"""From fresh weights to a language model, on plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modules.config.training import TrainingConfig

from .cli.command_line import run_stage

if TYPE_CHECKING:
    from modules.data.sources import RowSource

    from .train import TrainResult


def pretrain(config: TrainingConfig, rows: RowSource | None = None) -> TrainResult:
    """`rows` stands in for data.path: a Dataset, {"src_txt": […]}, or what modules.data.rows.load_rows takes."""
    from .train import train  # takes seconds to import, and --help needs none of it

    return train("pretrain", config, rows)


if __name__ == "__main__":
    run_stage("pretrain", pretrain)
