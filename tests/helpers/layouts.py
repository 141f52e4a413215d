"""Training on several processes without the wait for their imports: they are forked from a server that has them."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import traceback
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pytorch_lightning.loggers.logger import Logger

from modules.config.loader import load_config
from modules.system.signals import is_main_process
from modules.training.checkpoints.resume import followed
from modules.training.fit import fit
from pipelines.cli.command_line import quieten_libraries
from pipelines.train import set_up_training

SECONDS = 120


class Recorder(Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    name = version = "recorder"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({"step": step, **metrics})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def train_layout(folder: Path, processes: int, arguments: list[str], stage: str = "pretrain") -> dict[str, Any]:
    """Trains as the stage does, on so many processes; what rank 0 logged, its metrics and checkpoint."""
    context = multiprocessing.get_context("forkserver")
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):  # what the server starts with; threads don't survive a fork
        context.set_forkserver_preload([__name__])
        forkserver.ensure_running()
    port = free_port()
    ranks = [
        context.Process(target=work, args=(folder, rank, processes, port, arguments, stage))
        for rank in range(processes)
    ]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(SECONDS)
        said = "\n".join(path.read_text() for path in sorted(folder.glob("output-*.txt")))
        assert [process.exitcode for process in ranks] == [0] * processes, said[-3000:]
    finally:
        for process in ranks:
            process.kill()
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result | {"folder": folder}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def work(folder: Path, rank: int, processes: int, port: int, arguments: list[str], stage: str) -> None:
    """What each process does, with the environment that torchrun would give it."""
    with (folder / f"output-{rank}.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(folder)
    if processes > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ |= {name: str(value) for name, value in places.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"GROUP_RANK": "0"}
    code = 1
    try:
        train(folder, arguments, stage)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without waiting for gloo's threads


def train(folder: Path, arguments: list[str], stage: str) -> None:
    quieten_libraries()
    config = load_config(stage, arguments)
    recorder = Recorder()
    training = set_up_training(config, None)
    checkpoint, metrics = fit(stage, config, training, folder, recorder, checkpoint=followed(config))
    if is_main_process():
        result = {"rows": recorder.rows, "metrics": metrics, "checkpoint": str(checkpoint)}
        (folder / "result.json").write_text(json.dumps(result))
