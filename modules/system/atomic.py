"""Names of what isn't whole yet: `.NAME.HOST-PROCESS.tmp`, until it is renamed or its process is gone."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def new_folder(folder: Path, what: str) -> Iterator[Path]:
    """A folder under a temporary name, to write to; then it is synced to disk and renamed, or removed if that fails.

    Raises FileExistsError rather than overwrite; `what` stands in its message.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; {what} is never overwritten: choose another name")
    draft = draft_of(folder)
    remove_abandoned(folder.parent)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for path in [*draft.rglob("*"), draft]:
            sync(path)
        draft.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


DRAFT = re.compile(r"\..+\.(?P<host>[^/]*)-(?P<process>\d+)\.tmp")


def draft_of(path: Path) -> Path:
    """Where this process writes what is to become `path`: beside it, so that a rename is all that is left to do."""
    return path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}.tmp")


def drafts_in(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".*.tmp") if DRAFT.fullmatch(path.name)]


def remove_abandoned(folder: Path) -> None:
    """Removes what killed processes of this machine have left half written in a folder."""
    for path in drafts_in(folder):
        found = DRAFT.fullmatch(path.name)
        assert found
        if found["host"] == os.uname().nodename and not is_alive(int(found["process"])):
            remove(path)


def is_alive(process: int) -> bool:
    """Whether a process of this machine has this id."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    temporary = draft_of(path)
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, ensure_ascii=False, indent=2)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def take_name(draft: Path, path: Path) -> None:
    """Syncs a folder and everything in it, then renames it."""
    for written in [*draft.iterdir(), draft]:
        sync(written)
    if path.exists():  # one that didn't verify; whoever goes on from an earlier one comes by here again
        remove_folder(path)
    draft.rename(path)
    sync(path.parent)


def remove_folder(path: Path) -> None:
    """Under another name first: half a folder must not pass for a whole one."""
    removed = path.with_name(f".{path.name}.removed.tmp")
    shutil.rmtree(removed, ignore_errors=True)
    path.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)
