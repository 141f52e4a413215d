"""Several devices on this machine: a training command starts itself once for each, with torchrun's own agent.

Under torchrun or SLURM (which it takes for several machines) the processes are there already.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import uuid

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from modules.config import TrainerConfig
from modules.strategies import require_devices

LOST = re.compile(r"Timed out waiting|Connection closed by peer|Connection reset by peer|Watchdog caught|timeout")
"""What gloo and NCCL say when another rank is gone or doesn't answer."""


class WorkerError(ValueError):
    """A process of the job has ended or hangs; the others were stopped."""


def lost_contact(error: BaseException, timeout: int) -> WorkerError | None:
    """What an error means where another rank's silence is behind it (teardown may have failed on top of it)."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RuntimeError) and LOST.search(str(cause)):
            return WorkerError(
                f"rank {os.environ.get('RANK', '?')}: another rank has died, or hasn't answered for {timeout} s "
                "(trainer.process_group_timeout). The last checkpoint stays: go on with train.resume_from"
            )
        cause = cause.__context__
    return None


def is_worker() -> bool:
    """Whether torchrun or SLURM started this process as one of a job."""
    return "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ


def launch(stage: str, arguments: list[str], trainer: TrainerConfig) -> None:
    """Runs `python -m pipelines.STAGE` on each of trainer.devices and waits; raises WorkerError if one fails."""
    if trainer.nodes > 1:
        raise ValueError(
            f"trainer.nodes={trainer.nodes}: start the same command on every machine with srun, or with "
            f"torchrun --nnodes={trainer.nodes} --nproc-per-node={trainer.devices} --rdzv-backend=c10d "
            f"--rdzv-endpoint=HOST:PORT -m pipelines.{stage} …"
        )
    require_devices(trainer)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
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
        raise (KeyboardInterrupt() if error.sigval == signal.SIGINT else SystemExit()) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        raise WorkerError(
            f"rank {rank} of {trainer.devices} ended first ({how}); the job was stopped. What it said stands above"
        ) from None
