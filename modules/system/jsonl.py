"""Rows in .jsonl.gz files: the same rows give the same bytes, and a file is there whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .atomic import draft_of, remove_abandoned
from .checksums import sha256_of

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
