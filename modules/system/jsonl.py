"""Rows in .jsonl.gz files: one JSON object a line; the same rows always give the same bytes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .atomic import new_file
from .checksums import sha256_of

Row = dict[str, str]
_COMPRESSION_LEVEL = 6


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes the file, whole or not at all; returns its {"rows", "bytes", "sha256"}."""
    count = 0
    # Neither time nor name in the header: they would differ from run to run.
    with new_file(path) as raw, gzip.GzipFile("", "wb", _COMPRESSION_LEVEL, raw, mtime=0) as packed:
        for row in rows:
            packed.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += 1
    return {"rows": count, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def read_jsonl(path: Path) -> list[Row]:
    """All rows of a file that write_jsonl wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]
