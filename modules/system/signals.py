"""Which process of a job this is, and how it is stopped. Imports nothing heavy: the command line asks first of all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

TOGETHER = 2.0
"""Seconds within which several signals are one: a launcher passes on what its processes got as well."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Stopped(SystemExit):
    """SIGTERM or Ctrl-C has ended this process; `message` says where that leaves the run."""

    def __init__(self, signal_number: int, message: str | None = None) -> None:
        super().__init__(128 + signal_number)
        self.message = message or ("interrupted" if signal_number == signal.SIGINT else "terminated")


def is_main_process() -> bool:
    """Whether this is the only process or the first of a job: it alone prints, logs and writes."""
    return (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0"


def is_worker() -> bool:
    """Whether torchrun or SLURM started this process as one of several; a job script is a single task of SLURM's."""
    tasks = os.environ.get("SLURM_PROCID") and (os.environ.get("SLURM_NTASKS") or "1")
    return bool(os.environ.get("LOCAL_RANK")) or tasks not in (None, "", "1")


def forget_empty_ranks() -> None:
    """An empty variable of torchrun's or SLURM's is as one that isn't set; libraries would make a number of it."""
    for name in list(os.environ):
        if not os.environ[name] and (name.endswith("RANK") or name == "WORLD_SIZE" or name.startswith("SLURM_")):
            del os.environ[name]


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
    """Meanwhile SIGTERM and Ctrl-C end this process where it stands, as Stopped."""
    with handling(_leave):
        yield


Handler = Callable[[int, FrameType | None], object]


@contextlib.contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """The handler of SIGTERM and Ctrl-C meanwhile; what listened before is put back."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals don't come here
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    _listen(handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _listen(handler: Handler) -> None:
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for a shell's background job and Ctrl-C
            signal.signal(number, handler)


def _leave(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(signal_number)


def end_with_parent() -> None:
    """Asks Linux for a SIGTERM when the process that started this one dies, however that happens.

    `mlflow run` and torchrun would leave it behind, to train for nobody.
    """
    if is_worker() or os.environ.get("MLFLOW_RUN_ID"):
        stop_with_parent()


def stop_with_parent() -> None:
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise Stopped(signal.SIGTERM)


class StopRequest:
    """The first SIGTERM or Ctrl-C asks for a stop at the next step's end; one that comes later is obeyed at once.

    Lightning's handler, which this one displaces, would begin a broadcast in the middle of other collectives.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.asked_at = 0.0
        self.message: str | None = None
        """What a stop says, once there is a checkpoint."""

    @property
    def asked(self) -> bool:
        return self.signal_number is not None

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """A request that came too late for another step is obeyed at the end."""
        with handling(self._ask):
            try:
                yield
            except SystemExit:  # a library's own, on the same signal
                if self.asked:
                    self.leave()
                raise
        if self.asked:
            self.leave()

    def listen(self) -> None:
        """Again where a library has put a handler of its own."""
        if threading.current_thread() is threading.main_thread():
            _listen(self._ask)

    def _ask(self, signal_number: int, frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number, self.asked_at = signal_number, time.monotonic()
        elif time.monotonic() - self.asked_at > TOGETHER:
            self.leave()

    def leave(self) -> NoReturn:
        """Raises Stopped. Without a signal of its own, another process of the job got one."""
        raise Stopped(self.signal_number or signal.SIGTERM, self.message)


class WorkerError(ValueError):
    """A process of a job of several has ended or hangs; the others were stopped."""
