"""One process holds a lock, others are told who; it ends with the process, and never does without a real one."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modules.system.process_locks import InUseError, is_locked, take_lock
from tests.helpers.models import ROOT

HOLD = """
import sys, pathlib
from modules.system.process_locks import take_lock
take_lock(pathlib.Path(sys.argv[1]), "the first")
print(1, flush=True)
input()
"""


def test_a_lock_is_held_until_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout
        assert other.stdout.readline() == b"1\n"
        assert is_locked(path)
        for _ in range(2):  # to ask doesn't take its name away
            with pytest.raises(InUseError, match=r"^the first$"):
                take_lock(path, "the second")
        other.kill()
        other.wait()
    assert not is_locked(path)
    lock = take_lock(path, "the second")
    with pytest.raises(InUseError, match="the second"):  # by this process itself too
        take_lock(path, "the third")
    lock.release()
    take_lock(path, "the fourth").release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            take_lock(tmp_path / "lock", "me").release()
    assert caplog.text.count(f"{tmp_path} has no locks ([Errno {number}]") == 2
    assert is_locked(tmp_path / "lock")  # nobody can tell
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_lock_that_may_not_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(OSError, match="lock"):
        take_lock(tmp_path / "lock", "me")
