"""Rows and models by what they hold and not by what they are called: digests of files and folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from ...config.base import is_registered, model_folder
from ...data.reading.finding import several
from ...system.checksums import sha256_of
from ...system.paths import expanded
from ..registry import resolve_model

DESCRIPTIONS = ("run.yaml", "manifest.json", "README.md", "golden.safetensors")
"""Files that say where the others come from, or follow from them: the same content made anew has others."""


def checksums(folder: Path) -> dict[str, str]:
    """Path below the folder → SHA-256, of each file that isn't hidden, also behind links."""
    return {path.relative_to(folder).as_posix(): hash_of(path) for path in sorted(files_below(folder, set()))}


def files_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """seen: folders that were gone through already: links may lead in a circle."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from files_below(path, seen)
        elif path.is_file():
            yield path


def hash_of(path: Path) -> str:
    """SHA-256 of a file, which is read once as long as it isn't touched: several stages read the same model."""
    facts = path.stat()
    return hash_as_found(path.resolve(), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


@cache
def hash_as_found(path: Path, *_: int) -> str:
    return sha256_of(path)


def content_digest(files: Mapping[str, str]) -> str:
    """One digest of what files (name → SHA-256) hold, without what merely describes it."""
    content = {name: digest for name, digest in files.items() if Path(name).name not in DESCRIPTIONS}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def content_of(place: str, is_model: bool = False) -> str | None:
    """The digest of what a key names: a file, several, a folder or a registered model.

    None for what isn't on this machine, as a dataset of the hub: it may be another by now.
    """
    if is_registered(place):
        return content_digest(checksums(resolve_model(place)))
    path = model_folder(place) if is_model else Path(expanded(place))
    if path.is_dir():
        return content_digest(checksums(path))
    files = [path] if path.is_file() else several(place)
    return content_digest({str(number): hash_of(file) for number, file in enumerate(files)}) if files else None


def damage_of(folder: Path, files: Mapping[str, str]) -> str | None:
    """What is wrong with a folder that held these files, None where each still holds what it did.

    A model's card may have been written since, or written anew.
    """
    if not folder.is_dir():
        return f"{folder} is gone"
    now = checksums(folder)
    for name, digest in files.items():
        if name != "README.md" and now.get(name) != digest:
            return f"{folder / name} {'has other content' if name in now else 'is gone'}"
    return None
