"""Encoded rows in files that are mapped into memory: made once for the same rows, tokenizer and length."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np

from .cache import cached
from .encoding import Documents, encode_batches
from .row_tables import fingerprint
from .tokenizer import Tokenizer

ARRAYS = tuple(field.name for field in fields(Documents))[:5]
COUNTS = tuple(field.name for field in fields(Documents))[5:]


def stored_documents(
    rows: datasets.Dataset,
    tokenizer: Tokenizer,
    sequence_length: int,
    over_long: Literal["split", "cut"],
    cache: Path,
) -> Documents:
    """What encode_rows gives, as arrays on disk: memory is bounded however many rows there are."""
    origin = {
        "rows": fingerprint(rows),
        "tokenizer": tokenizer.fingerprint,
        "sequence_length": sequence_length,
        "over_long": over_long,
        "tokenizers": version("jieba") if tokenizer.kind == "jieba_bpe" else version("tokenizers"),
    }

    def build(folder: Path) -> None:
        write_documents(folder, rows, tokenizer, sequence_length, over_long)

    return open_documents(cached(cache, "tokens", origin, build))


def open_documents(folder: Path) -> Documents:
    counts = json.loads((folder / "counts.json").read_text())
    return Documents(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}, **counts)


def write_documents(
    folder: Path, rows: datasets.Dataset, tokenizer: Tokenizer, sequence_length: int, over_long: Literal["split", "cut"]
) -> None:
    columns = {name: ArrayFile(folder / f"{name}.npy") for name in ARRAYS}
    columns["offsets"].append(np.zeros(1, np.int64))
    counts = {"rows": len(rows), "rows_cut": 0, "rows_split": 0}
    total = 0
    for batch in encode_batches(rows, tokenizer, sequence_length, over_long):
        parts = batch._asdict()
        parts["offsets"] = total + parts.pop("lengths").cumsum()
        total = int(parts["offsets"][-1])
        for name in ARRAYS:
            columns[name].append(parts[name])
        counts["rows_cut"] += batch.rows_cut
        counts["rows_split"] += batch.rows_split
    for column in columns.values():
        column.close()
    (folder / "counts.json").write_text(json.dumps(counts))


class ArrayFile:
    """A one-dimensional .npy file that grows."""

    def __init__(self, path: Path) -> None:
        self.stream = path.open("wb")
        self.length = 0
        self.dtype = np.dtype(np.int64)

    def append(self, values: np.ndarray) -> None:
        if not self.length:
            self.dtype = values.dtype
            self.write_header()
        self.length += len(values)
        self.stream.write(values.tobytes())

    def write_header(self) -> None:
        """The same number of bytes for any length: numpy leaves room for the first dimension to grow."""
        header: dict[str, Any] = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.length,),
        }
        np.lib.format.write_array_header_1_0(self.stream, header)

    def close(self) -> None:
        self.stream.seek(0)
        self.write_header()
        self.stream.close()
