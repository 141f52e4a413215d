"""The lock of a run's local log: one process writes to it, and the others can tell that it does."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

PRIVATE = 0o600

OPENED: set[Path] = set()
"""Logs that this process writes to itself, which the file lock doesn't keep out."""


class SpoolInUseError(ValueError):
    """Another process writes to the run."""

    def __init__(self, folder: Path, owner: str) -> None:
        super().__init__(f"{folder} is in use: process {owner} writes to this run; let it end, or stop it")
        self.owner = owner
        """Its number."""


def take_lock(folder: Path) -> int:
    """A file descriptor that holds the lock; it ends with the process, and its children don't have it.

    Raises:
        SpoolInUseError: Another process has it, or this one.
    """
    if folder in OPENED:  # asked first: to open the lock's file and close it again would free the lock
        raise SpoolInUseError(folder, str(os.getpid()))
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # otherwise this file system has no locks
            owner = os.pread(file, 20, 0).decode() or "?"
            os.close(file)
            raise SpoolInUseError(folder, owner) from None
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)
    OPENED.add(folder)
    return file


def free_lock(folder: Path, file: int) -> None:
    OPENED.discard(folder)
    os.close(file)


def is_held(folder: Path) -> bool:
    """Whether a process, in whatever container, writes to the run, as far as this file system knows locks."""
    if folder.resolve() in OPENED:
        return True
    with open(folder / "lock", "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
