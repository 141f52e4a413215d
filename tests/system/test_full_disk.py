"""Whatever library writes, a full disk is the operating system's error, and what it needs is said."""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from modules.checkpoint.pickles import write_stream
from modules.checkpoint.weights import save_tensors
from modules.system.atomic import disk_full, error_of_the_machine
from modules.training.callbacks import checkpoints_in
from modules.training.checkpoints import saving
from tests.checkpoint.test_training_checkpoint import losses

FULL = Path("/dev/full")
Usage = namedtuple("Usage", "total used free")


@pytest.mark.skipif(not FULL.exists(), reason="Linux has a disk that is always full")
def test_torchs_and_numpys_writers_on_a_full_disk() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_stream(FULL, {"weight": torch.zeros(100_000)})
    with FULL.open("wb") as stream, pytest.raises(OSError, match="written|No space") as caught:
        np.zeros(100_000).tofile(stream)
    found = error_of_the_machine(caught.value)
    assert found
    assert found.strerror == "No space left on device"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (Exception("Disk quota exceeded (os error 122)"), "Disk quota exceeded"),
        (Exception("IO Error: Read-only file system (os error 30)"), "Read-only file system"),
        (sqlite3.OperationalError("database or disk is full"), "No space left on device"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("a bug"), None),
        (FileNotFoundError(2, "No such file or directory"), None),
    ],
)
def test_the_operating_systems_error_behind_a_librarys(error: Exception, reason: str | None) -> None:
    for given in (error, chained(error)):
        found = error_of_the_machine(given)
        assert (found and found.strerror) == reason


def chained(error: Exception) -> Exception:
    outer = Exception("the library failed")
    outer.__cause__ = error
    return outer


def test_safetensors_message_is_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("modules.checkpoint.weights.save_file", full)
    with pytest.raises(OSError, match="the weights could not be written: No space left on device") as caught:
        save_tensors({}, tmp_path / "x.safetensors", {})
    assert caught.value.errno == 28


def test_a_checkpoint_that_does_not_fit_says_what_it_needs_and_the_earlier_one_stays(
    rows: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses(rows, tmp_path, "train.max_steps=2")
    first = tmp_path / "checkpoints" / "step=2.ckpt"
    size = sum(path.stat().st_size for path in first.iterdir())

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    monkeypatch.setattr(saving.dcp, "save", full)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(size, size, size // 4))
    with pytest.raises(
        ValueError, match=r"disk full: .*checkpoints has \d\.\d MiB left, the checkpoint needs \d\.\d MiB"
    ):
        losses(rows, tmp_path, "train.max_steps=4", f"train.resume_from={first}")
    assert list(checkpoints_in(tmp_path / "checkpoints")) == [2]


def test_a_disk_with_room_is_not_full(tmp_path: Path) -> None:
    assert disk_full(tmp_path, "the checkpoint", 1) is None
