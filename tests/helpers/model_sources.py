"""Sources of a served model, as its process asks them: one that takes its time, those that fail, and an alias."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from modules.inference.server.model_process.messages import Source


@dataclass(frozen=True)
class OnceThere(Source):
    """Takes as long as a test likes."""

    file: Path
    folder: Path

    def find(self, version: str | None) -> Path:
        end = time.monotonic() + 60
        while not self.file.exists():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)
        return self.folder


@dataclass(frozen=True)
class Dies(Source):
    """In a process that gets no further."""

    folder: Path

    def find(self, version: str | None) -> Path:
        with (self.folder / "deaths").open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
        return self.folder


class OddError(Exception):
    """Can't be sent from one process to another: it isn't made of its message."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


@dataclass(frozen=True)
class Fails(Source):
    what: str

    def find(self, version: str | None) -> Path:
        errors: dict[str, BaseException] = {
            "user": ValueError("no such thing"),
            "own": ZeroDivisionError("ours"),
            "odd": OddError(1, 2),
            "exit": SystemExit("a library's"),
        }
        raise errors[self.what]


@dataclass(frozen=True)
class Alias(Source):
    """A registry in a folder: `alias` names a version, which is the folder beside it of that name."""

    registry: Path

    def newest(self) -> str | None:
        return (self.registry / "alias").read_text()

    def find(self, version: str | None) -> Path:
        assert version
        self.newest()  # which fails while the registry is away
        return self.registry / version

    def move(self, version: str) -> None:
        draft = self.registry / "draft"
        draft.write_text(version)
        draft.rename(self.registry / "alias")
