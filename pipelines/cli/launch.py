"""Several devices on this machine: a training command starts itself once for each, with torchrun's own agent.

Under torchrun or SLURM (which it takes for several machines) the processes are there already.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid

from modules.config.training import TrainerConfig
from modules.system.signals import Stopped, WorkerError, is_worker


def require_processes(trainer: TrainerConfig) -> None:
    """ValueError where torchrun or SLURM started another number of processes than the configuration says."""
    started = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    asked = trainer.devices * trainer.nodes
    if is_worker() and started != asked:
        tasks = f"--nodes={trainer.nodes} --ntasks-per-node={trainer.devices}"
        remedy = f"srun {tasks} python -m pipelines.STAGE … (sbatch with the same)"
        if os.environ.get("LOCAL_RANK"):
            remedy = f"torchrun --nnodes={trainer.nodes} --nproc-per-node={trainer.devices} -m pipelines.STAGE …"
        raise ValueError(
            f"{started} processes were started, but trainer.devices={trainer.devices} × trainer.nodes={trainer.nodes} "
            f"makes {asked}: each would train a model of its own. Start it with {remedy}, or give those numbers"
        )


def launch(stage: str, arguments: list[str], trainer: TrainerConfig) -> None:
    """Runs `python -m pipelines.STAGE` on each of trainer.devices and waits; raises WorkerError if one fails."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from modules.training.strategies import require_devices

    if trainer.nodes > 1:
        raise ValueError(
            f"trainer.nodes={trainer.nodes}: start the same command on every machine with srun, or with "
            f"torchrun --nnodes={trainer.nodes} --nproc-per-node={trainer.devices} --rdzv-backend=c10d "
            f"--rdzv-endpoint=HOST:PORT -m pipelines.{stage} …"
        )
    require_devices(trainer)
    for name in ("multiprocessing.api", "agent.server.api"):  # what it says, the message below says shorter
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // trainer.devices)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=trainer.devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", f"pipelines.{stage}", *arguments)
    except SignalException as error:
        raise Stopped(error.sigval) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode in (128 + signal.SIGTERM, 128 + signal.SIGINT):  # one of them was told, and all agreed
            raise Stopped(failure.exitcode - 128) from None
        how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        raise WorkerError(
            f"rank {rank} of {trainer.devices} ended first ({how}); the job was stopped. What it said stands above"
        ) from None
