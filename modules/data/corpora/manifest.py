"""The manifest of a data folder: what the rows were made from, and the bytes of each file that was written."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ...system.atomic import write_json
from ...system.bounded_read import read_json
from ...system.checksums import sha256_of
from ...system.jsonl import write_jsonl
from ..quarantine import DataError

MANIFEST = "manifest.json"
Manifest = dict[str, Any]
T = TypeVar("T")

DIFFERENCES = {
    "sha256": "rows or columns",
    "fractions": "validation_fraction or test_fraction",
    "asked": "prompts or sampling",
}
"""What of a manifest isn't called what it says."""


def write_splits(folder: Path, rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> Manifest:
    """Name → rows as FOLDER/NAME.jsonl.gz, in this order; returns what the manifest says of the files."""
    return {f"{name}.jsonl.gz": write_jsonl(folder / f"{name}.jsonl.gz", rows[name]) for name in rows}


def unseen(rows: Iterable[T], key_of: Callable[[T], Hashable], seen: set[Any]) -> Iterator[T]:
    """The rows whose key isn't in `seen`, to which it is added."""
    for row in rows:
        key = key_of(row)
        if key not in seen:
            seen.add(key)
            yield row


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest, {} where there is none that can be read."""
    try:
        manifest: Manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return {}
    return manifest


def files_unchanged(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether there are files at all, and each still is the bytes that its entry in the manifest says."""
    digests = {folder / path: entry["sha256"] for path, entry in files.items()}
    return bool(digests) and all(path.is_file() and sha256_of(path) == digest for path, digest in digests.items())


def earlier_manifest(folder: Path, identity: Manifest) -> Manifest | None:
    """The manifest of a folder that was made from just this and is unchanged; DataError where it holds anything else.

    None for an empty folder, and for one whose making was interrupted: that is repeated from the start.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    manifest = read_manifest(folder)
    if identity.items() <= manifest.items():
        if manifest.get("unfinished"):
            return None
        if files_unchanged(folder, manifest.get("files", {})):
            return manifest
    raise DataError(
        f"{folder} holds other data than {identity['source']} gives now ({what_differs(manifest, identity)}), and "
        "nothing is overwritten: give output_dir=ANOTHER_FOLDER, or delete this one"
    )


def what_differs(manifest: Manifest, identity: Manifest) -> str:
    """In words, why a folder with this manifest isn't what would be made now."""
    if not manifest:
        return f"no {MANIFEST} that can be read says what it is"
    if older := [key for key in identity if key not in manifest]:
        return f"an earlier moyun made it, without {', '.join(older)}"
    if differ := [DIFFERENCES.get(key, key) for key in identity if manifest[key] != identity[key]]:
        return f"other {' and '.join(differ)}"
    return "its files aren't as they were written"


def begin_folder(folder: Path, identity: Manifest) -> None:
    """Marks the folder as being made from just this, so that an interrupted call can be repeated."""
    write_json(folder / MANIFEST, {**identity, "unfinished": True})


def finish_folder(folder: Path, identity: Manifest, files: Mapping[str, Any]) -> Manifest:
    """Writes the manifest without that mark, after all else, and returns it."""
    manifest = {**identity, "files": files}
    write_json(folder / MANIFEST, manifest)
    return manifest


def signed(folder: Path, earlier: Manifest, manifest: Manifest, program: str) -> Manifest:
    """The manifest of a folder that was made just now, with the digest of the code and libraries that made it.

    earlier: the manifest before; where it is the same, the folder was taken as it is, and so stays its manifest.
    """
    if manifest == earlier:
        return manifest
    write_json(folder / MANIFEST, manifest | {"program": program})
    return manifest | {"program": program}


def source_of(place: str | None) -> dict[str, str]:
    """What the manifest of a prepared folder (or of the one that a set lies in) says the rows were made from."""
    for folder in (Path(place), Path(place).parent) if place else ():
        if manifest := read_manifest(folder):
            return {key: value for key, value in manifest.items() if isinstance(value, str)}
    return {}
