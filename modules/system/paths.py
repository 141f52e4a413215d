"""Paths as people write them: ~ is filled in, and what no file or folder can ever be is said in words."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

NO_PATH = {
    errno.ELOOP: "its links lead in a circle",
    errno.ENAMETOOLONG: "the name is too long for a file or folder (255 bytes, some 80 Chinese characters)",
    errno.ENOTDIR: "a part of it is a file and no folder",
    errno.EACCES: "a folder on the way to it may not be looked into",
}
"""Errors of looking at a path that will still be there when it is read or written."""

VARIABLE = re.compile(r"\$(\w+|\{\w+\})(?=/|$)")
STORE = re.compile(r"(sqlite:///|file://(?=/~))/?(?=~)")


def expanded(text: str) -> str:
    """A path, or a tracking store's URI, with ~ and ~USER at its beginning as the home folder."""
    store = STORE.match(text)
    prefix = store[1] if store else ""
    return prefix + os.path.expanduser(text[store.end() :] if store else text)


def why_no_path(text: str) -> str | None:
    """Why nothing can be read from or written to this path, which need not be there yet; None where it can."""
    if text.startswith("["):  # a list of paths, which whoever reads them takes apart
        return None
    if text.startswith("file://"):
        return f"a path is wanted here, without file://: {unquote(text.removeprefix('file://'))}"
    if (variable := VARIABLE.match(text)) and variable[1].strip("{}") in os.environ:
        return "variables aren't filled in here: write the path itself (~ is your home folder)"
    try:
        mode = os.stat(text).st_mode
    except ValueError:
        return "no path can hold a NUL character, or half a character"
    except OSError as error:
        return NO_PATH.get(error.errno or 0)
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else not_regular(mode)


def is_below(place: str, folders: Iterable[str]) -> bool:
    """Whether a path is one of the folders or lies in one."""
    return any(Path(os.path.abspath(place)).is_relative_to(os.path.abspath(folder)) for folder in folders)


def not_regular(mode: int) -> str:
    """What is there instead of a file. A pipe would be waited for, and a device has no end."""
    if stat.S_ISDIR(mode):
        return "it is a folder, and a file is wanted"
    return f"no regular file but a {kind_of(mode)}; save what it gives to a file first"


def kind_of(mode: int) -> str:
    return "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


def place_to_write(path: Path) -> Path:
    """Where a file's new content goes: the file that links lead to. ValueError where a pipe or device is in its place.

    A file that is written anew is renamed to its place, and would take that of a device as well.
    """
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    if place.exists() and not stat.S_ISREG(mode := place.stat().st_mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path}: no regular file but a {kind_of(mode)}, which is never replaced")
    return place


def require_regular(path: Path) -> os.stat_result:
    """What the file system says of a file. ValueError for anything but a regular file, FileNotFoundError for none."""
    try:
        facts = path.stat()
    except OSError as error:
        if error.errno in NO_PATH:
            raise ValueError(f"{path}: {NO_PATH[error.errno]}") from error
        raise
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError(f"{path}: {not_regular(facts.st_mode)}")
    return facts
