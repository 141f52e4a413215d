"""Which process of a job this is. Imports nothing heavy: the command line asks before there is anything to do."""

from __future__ import annotations

import os
import signal
from types import FrameType


def is_main_process() -> bool:
    """Whether this is the only process or the first of a job: it alone prints, logs and writes."""
    return next((os.environ[name] for name in ("RANK", "SLURM_PROCID") if name in os.environ), "0") == "0"


def is_worker() -> bool:
    """Whether torchrun or SLURM started this process as one of a job."""
    return "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ


def stop_at_once() -> None:
    """From here on SIGTERM ends this process where it stands."""
    signal.signal(signal.SIGTERM, _leave)


def _leave(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit
