"""files.json: how long each file of a folder is and what it hashes to, so that a damaged folder is known as such."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .atomic import write_json
from .bounded_read import read_json
from .paths import require_regular

FILE_LIST = "files.json"

PASSING = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ENOMEM)
"""Errors that say nothing about what is on the disk."""

Described = Mapping[str, tuple[int, str]]
"""File name → (bytes, SHA-256)."""


def describe_files(files: Iterable[Path]) -> dict[str, tuple[int, str]]:
    return {path.name: (path.stat().st_size, sha256_of(path)) for path in files}


def write_file_list(folder: Path, files: Described) -> None:
    write_json(folder / FILE_LIST, {name: list(facts) for name, facts in sorted(files.items())})


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that has a list, None where all is as it was written."""
    try:
        contents = read_json(folder / FILE_LIST)
        for name, (size, _) in contents.items():
            if (folder / name).stat().st_size != size:
                return f"{name} has another length"
        with ThreadPoolExecutor() as threads:  # a large checkpoint has a file of each rank, and the others wait
            found = threads.map(sha256_of, [folder / name for name in contents])
            for (name, (_, digest)), actual in zip(contents.items(), found, strict=True):
                if actual != digest:
                    return f"{name} has other content"
    except FileNotFoundError as error:
        return f"no {Path(error.filename).name}"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno in PASSING:
            raise
        return str(error)
    return None


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal. Raises ValueError for a pipe or device."""
    require_regular(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
