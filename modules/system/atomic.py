"""Files and folders that are there whole or not at all, whenever the process is killed or the power fails.

Everything is written as a draft beside its place, `.NAME.HOST-PROCESS.tmp`, synced to disk and renamed. The drafts of a
killed process are removed by the next writer in the same folder on the same machine.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .paths import place_to_write

OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
"""What a disk, or the right to write to it, can be wanting in."""

NUMBERED = re.compile(r"\b(?:os error|errno) (\d+)", re.IGNORECASE)
"""How libraries in other languages pass on the operating system's errors."""

TORCHS = "inline_container"
"""torch.save's own complaint, which hides that of the stream it writes to."""

NO_ROOM = re.compile(r"No space left on device|database or disk is full|\d+ requested and \d+ written")
"""What Rust's libraries, SQLite and NumPy say of a full disk."""

DRAFT = re.compile(r"\..+-(?P<process>\d+)\.tmp")


def draft_of(path: Path) -> Path:
    """Where this process writes what is to become `path`."""
    return path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}.tmp")


def drafts_in(folder: Path) -> list[Path]:
    """The drafts in a folder, of any process on any machine."""
    return [path for path in folder.glob(".*.tmp") if DRAFT.fullmatch(path.name)]


def remove_abandoned(folder: Path) -> None:
    """Removes the drafts of this machine's processes that are no longer there."""
    for path in folder.glob(f".*.{os.uname().nodename}-*.tmp"):
        found = DRAFT.fullmatch(path.name)
        if found and not is_alive(int(found["process"])):
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
    """Removes a file, a link or a folder with all that is in it; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Waits until the disk has a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_file(path: Path, permissions: int = 0o666) -> Iterator[IO[bytes]]:
    """A stream whose content becomes the file `path`, in place of an earlier one; after an error all is as it was.

    A link stays, and the file that it leads to is written. ValueError where a pipe or device is there.
    """
    path = place_to_write(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    draft = draft_of(path)
    try:
        with naming(path), open(draft, "wb", opener=lambda name, flags: os.open(name, flags, permissions)) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names `path` in the system's errors within the block that name no file, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename or not error.errno:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Writes a file of UTF-8 text."""
    with new_file(path) as stream:
        stream.write(text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file of indented JSON."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def write_link(path: Path, target: str) -> None:
    """Makes `path` a symbolic link, in place of an earlier one. ValueError where a pipe or device is there."""
    place_to_write(path)
    draft = draft_of(path)
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(path)
    flush_to_disk(path.parent)


@contextmanager
def new_folder(folder: Path, what: str) -> Iterator[Path]:
    """A draft to fill, which becomes `folder`; after an error it is removed.

    Raises FileExistsError where `folder` is there already; `what` says in the message what it is.
    """
    if os.path.lexists(folder):  # a link to nothing yet is there too
        raise FileExistsError(f"{folder} exists already; {what} is never overwritten: choose another name")
    draft = draft_of(folder)
    remove_abandoned(folder.parent)
    remove(draft)
    draft.mkdir(parents=True)
    try:
        yield draft
        publish_folder(draft, folder)
    except BaseException:
        remove(draft)
        raise


def publish_folder(draft: Path, folder: Path, replace: bool = False) -> None:
    """Syncs a draft with all that is in it, then renames it to `folder`.

    With `replace` it takes the place of an earlier folder; without, OSError where there is one.
    """
    for path in [*draft.rglob("*"), draft]:
        flush_to_disk(path)
    if replace and folder.exists():
        remove_folder(folder)
    draft.rename(folder)
    flush_to_disk(folder.parent)


def remove_folder(path: Path) -> None:
    """Removes a folder; it is renamed first, because half of one must not pass for a whole one."""
    removed = draft_of(path.with_name(f"{path.name}.removed"))
    remove(removed)
    path.rename(removed)
    remove(removed)


def error_of_the_machine(error: BaseException | None) -> OSError | None:
    """The operating system's error behind a library's, if one of OF_THE_MACHINE is."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            return error
        text = str(error)
        number = int(found[1]) if (found := NUMBERED.search(text)) else None
        number = errno.ENOSPC if NO_ROOM.search(text) else number
        if number in OF_THE_MACHINE:
            return OSError(number, os.strerror(number))
        error = error.__context__ if TORCHS in text else error.__cause__
    return None


def disk_full(folder: Path, what: str, needed: int) -> str | None:
    """One line where `folder` hasn't the bytes that `what` needs."""
    left = shutil.disk_usage(folder).free
    if left >= needed:
        return None
    return f"disk full: {folder} has {left / 2**20:,.1f} MiB left, {what} needs {needed / 2**20:,.1f} MiB"
