"""What goes wrong in a run: at the n-th time that it comes by a place, or after so many seconds."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from modules.data import packing
from modules.system import atomic, checksums
from modules.tracking.tracked_run import TrackedRun
from modules.training import callbacks
from modules.training.checkpoints import outcome, resume, saving
from modules.training.lightning_module import LanguageModel
from pipelines import train

PLACES: dict[str, list[tuple[Any, str]]] = {
    "in a step": [(LanguageModel, "_step")],
    "before the optimizer": [(LanguageModel, "agree")],
    "after the optimizer": [(LanguageModel, "log_step")],
    "between epochs": [(packing.ShuffledSteps, "plan_epoch")],
    "in a validation": [(LanguageModel, "validation_step")],
    "after a validation": [(callbacks.Checkpoints, "on_validation_end")],
    "when the model is made": [
        (outcome, "check_undamaged"),
        (train, "write_model"),
        (TrackedRun, "log_model"),
        (train, "write_run_manifest"),
        (resume, "write_run_manifest"),
        (saving.PortableCheckpoints, "load_weights"),
    ],
    "in a save": [
        (dcp, "save"),
        (saving, "describe_files"),
        (saving, "write_file_list"),
        (saving, "publish_folder"),
        (saving, "flush_to_disk"),
        (checksums, "sha256_of"),
        (atomic, "remove_folder"),
        (callbacks, "checkpoints_in"),
        (callbacks, "remove_folder"),
    ],
}
"""Functions that a run comes by, each time both before and after the call."""


@dataclass(frozen=True)
class Fault:
    kind: str
    """kill, terminate, interrupt, or disk full."""
    place: str
    """One of PLACES, or "any time": then `number` is milliseconds after training began."""
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.place}"


STRUCK = "struck"
FILLER = "filler"
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}


class Injector:
    """Counts how often the process comes by, and strikes once."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.count = 0

    def install(self) -> None:
        if self.fault.place == "any time":
            before(LanguageModel, "on_train_start", self.start_clock)
        else:
            for owner, name in PLACES[self.fault.place]:
                around(owner, name, self.come_by)

    def start_clock(self) -> None:
        timer = threading.Timer(self.fault.number / 1000, self.strike)
        timer.daemon = True
        timer.start()

    def come_by(self) -> None:
        self.count += 1
        if self.count == self.fault.number:
            self.strike()

    def strike(self) -> None:
        Path(STRUCK).touch()
        if self.fault.kind == "disk full":
            fill_disk(Path("out"))
        else:
            os.kill(os.getpid(), SIGNALS[self.fault.kind])


def fill_disk(folder: Path) -> None:
    """All of a file system of its own (runs.small_disk); elsewhere no file may grow past so much, MLflow's neither."""
    if not folder.is_mount():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return
    with contextlib.suppress(OSError), (folder / FILLER).open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def before(owner: Any, name: str, call: Callable[[], None]) -> None:
    function = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call()
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def around(owner: Any, name: str, call: Callable[[], None]) -> None:
    function = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call()
        result = function(*args, **kwargs)
        call()
        return result

    setattr(owner, name, wrapped)
