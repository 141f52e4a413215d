"""Locks that one process holds and another can ask about; the system frees them when the process ends, however it does.

The file of a lock stays where it is and names its last owner.
"""

from __future__ import annotations

import logging
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

logger = logging.getLogger("moyun.locks")

_TAKEN: dict[Path, BaseFileLock] = {}
"""Keeps a lock that nobody refers to any more: filelock would free it."""


class InUseError(Exception):
    """Another holder has the lock; the message is what that one wrote into it, empty where it is about to."""


def file_lock(path: Path) -> BaseFileLock:
    """A lock on `path`, not yet taken. Without a real lock of the file system none at all, which a kill would leave."""
    return FileLock(path, fallback_to_soft=False, thread_local=False)


def take_lock(path: Path, owner: str, permissions: int = 0o666) -> BaseFileLock:
    """Takes the lock and writes `owner` into its file; InUseError where it is held, in this process or another.

    A file system without locks is warned of.
    """
    path.touch(permissions)
    lock = file_lock(path)
    try:
        lock.acquire(timeout=0.2, poll_interval=0.02)  # is_locked of another process holds it for a moment
    except Timeout:
        raise InUseError(path.read_text(encoding="utf-8").strip()) from None
    except OSError as error:
        logger.warning("%s has no locks (%s): see to it that no other process writes there", path.parent, error)
    path.write_text(f"{owner}\n", encoding="utf-8")
    _TAKEN[path] = lock
    return lock


def is_locked(path: Path) -> bool:
    """Whether any process holds the lock; where the file system can't tell, it is taken for held."""
    try:
        with file_lock(path).acquire(blocking=False):
            return False
    except OSError:  # Timeout is one
        return True
