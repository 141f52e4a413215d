"""What training/test_several_devices.py starts on each process: trains as a stage does, and writes down the losses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger

from modules.config.loader import load_config
from modules.system.signals import is_main_process
from modules.training.fit import fit
from modules.training.resume import followed
from pipelines.cli.command_line import quieten_libraries
from pipelines.train import set_up_training


class Recorder(Logger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    name = version = "recorder"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({"step": step, **metrics})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


if __name__ == "__main__":
    quieten_libraries()
    folder = Path(sys.argv[1])
    config = load_config("pretrain", sys.argv[2:])
    recorder = Recorder()
    training = set_up_training(config, None)
    checkpoint, metrics = fit("pretrain", config, training, folder, recorder, checkpoint=followed(config))  # type: ignore[arg-type]
    if is_main_process():
        result = {"rows": recorder.rows, "metrics": metrics, "checkpoint": str(checkpoint)}
        (folder / "result.json").write_text(json.dumps(result))
