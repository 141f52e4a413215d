"""Sources of a served model, as another process calls them: one that takes its time, and those that fail."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def once_there(file: Path, folder: Path) -> Path:
    """Takes as long as a test likes."""
    end = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
    return folder


def dies(folder: Path) -> Path:
    """In a process that gets no further."""
    with (folder / "deaths").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)
    return folder


def fails(what: str) -> Path:
    raise {"user": ValueError("no such thing"), "own": ZeroDivisionError("ours"), "odd": OddError(1, 2)}[what]


class OddError(Exception):
    """Can't be sent from one process to another: it isn't made of its message."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")
