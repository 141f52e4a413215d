"""What can be computed again, kept on disk under the hash of what it was computed from.

An entry is a folder: its files, and files.json, which says how long each is and what it hashes to. It is written
under another name, synced and renamed, so it is there whole or not at all; all of it is hashed before it is used.
Processes that want the same entry at once wait for the first of them, where the file system has locks; where it has
none, or none between machines, each writes its own and the first is kept. Any entry may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .atomic import new_folder
from .checksums import damage, describe_files, write_file_list
from .paths import expanded
from .process_locks import file_lock

FORMAT = 1
"""Raised when entries change their form; earlier ones are then never found."""

LEFT_OVER = 24 * 3600
"""Seconds after which what is still being written was left by a process that was killed."""

logger = logging.getLogger("moyun.cache")


def cache_folder(configured: str | None) -> Path:
    """data.cache_dir, else moyun's folder where this user's caches are ($XDG_CACHE_HOME, ~/.cache)."""
    if configured:
        return Path(expanded(configured))
    return Path(expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "moyun"


class CacheError(ValueError):
    """The cache's folder can't be written."""


def cached(cache: Path, kind: str, origin: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder of the entry that `build(folder)` writes, built unless it is there and sound.

    origin: all that the entry's content follows from (JSON values); another origin is another entry.
    Raises CacheError where the folder can't be written.
    """
    content = json.dumps({"format": FORMAT, **origin}, sort_keys=True)
    entry = cache / f"{kind}-{hashlib.sha256(content.encode()).hexdigest()[:32]}"
    if damage(entry) is None:
        return entry
    with writing(cache), one_at_a_time(entry):
        found = damage(entry)
        if found is None:  # another process has made it meanwhile
            return entry
        if entry.exists():
            logger.warning("%s is damaged (%s): it is made again", entry, found)
            shutil.rmtree(entry, ignore_errors=True)
        remove_left_overs(entry)
        try:
            with new_folder(entry, "an entry of the cache") as draft:
                draft.chmod(0o700)
                build(draft)
                write_file_list(draft, describe_files(sorted(path for path in draft.iterdir() if path.is_file())))
        except OSError:
            if damage(entry) is not None:  # else a process was faster that no lock could hold back
                raise
    return entry


@contextlib.contextmanager
def writing(cache: Path) -> Iterator[None]:
    """Makes the folder; a fault of it, or of its disk, becomes a CacheError that says what to do."""
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # the texts are nobody else's business
        yield
    except OSError as error:
        raise CacheError(
            f"the cache {cache} can't be written ({error}): give a folder that can, with room for the rows and their "
            "ids, as data.cache_dir=FOLDER"
        ) from error


def remove_left_overs(entry: Path) -> None:
    """By age: a machine that this one shares no locks with may be at work."""
    for path in entry.parent.glob(f".{entry.name}.*"):
        with contextlib.suppress(FileNotFoundError):
            draft = path.suffix in (".tmp", ".partial")  # .partial: as earlier versions called them
            if draft and time.time() - path.stat().st_mtime > LEFT_OVER:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def one_at_a_time(entry: Path) -> Iterator[None]:
    """Waits for its turn; on a file system without locks nobody waits, which `cached` allows for too."""
    lock = file_lock(entry.with_name(f".{entry.name}.lock"))
    with contextlib.suppress(OSError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
