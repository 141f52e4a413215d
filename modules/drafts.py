"""Names of what isn't whole yet: `.NAME.HOST-PROCESS.tmp`, until it is renamed or its process is gone."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import psutil

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
        if found["host"] == os.uname().nodename and not psutil.pid_exists(int(found["process"])):
            remove(path)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
