"""Rows in .jsonl.gz files: the same rows give the same bytes, and a file is there whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .drafts import draft_of, remove_abandoned

Row = dict[str, str]
_COMPRESSION_LEVEL = 6


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Write one JSON object a line; returns {"rows", "bytes", "sha256"} of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    temporary = draft_of(path)
    count = 0
    try:
        with temporary.open("wb") as raw:
            # Neither time nor name in the header: they would differ from run to run.
            with gzip.GzipFile("", "wb", _COMPRESSION_LEVEL, raw, mtime=0) as packed:
                for row in rows:
                    packed.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                    count += 1
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return {"rows": count, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def read_rows(path: Path) -> list[Row]:
    """All rows of a file that write_rows wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
