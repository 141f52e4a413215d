"""From a model folder (train.init_from) to a model that prefers better answers, on pairs of them (DPO, ORPO)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modules.config.preferences.preference import PreferConfig

from .cli.command_line import run_stage

if TYPE_CHECKING:
    from modules.data.sources import RowSource

    from .train import TrainResult


def prefer(config: PreferConfig, rows: RowSource | None = None) -> TrainResult:
    """`rows` stands in for data.path: a Dataset, a list of dicts, {"prompt": […], "chosen": […], "rejected": […]}."""
    from .train import train  # takes seconds to import, and --help needs none of it

    return train("prefer", config, rows)


if __name__ == "__main__":
    run_stage("prefer", prefer)
