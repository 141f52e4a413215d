"""A run's local log: exact, whole after a crash, one process's alone, and patient with a full disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modules.tracking.outbox.spool import CHUNK, Spool, SpoolInUseError, last_record, unsent
from tests.helpers.models import ROOT


def test_the_log_survives_its_writer_bit_by_bit(tmp_path: Path) -> None:
    values = {"a": 0.1 + 0.2, "b": float("inf"), "c": 5e-324, "d": 1e308, "e": -0.0}
    spool = Spool(tmp_path / "run")
    spool.append("metrics", step=7, values=values)
    spool.append("tags", values={"诗": "春\n\r\u2028"})
    spool.close()
    again = Spool(tmp_path / "run")
    first, second = again.read(0, 0)
    assert {name: float(value).hex() for name, value in first.fields["values"].items()} == {
        name: value.hex() for name, value in values.items()
    }
    assert (first.number, second.number, second.fields["values"]) == (0, 1, {"诗": "春\n\r\u2028"})
    again.close()


def test_a_torn_last_line_is_cut_off_and_the_count_goes_on(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run")
    first = spool.append("metrics", step=1, values={"a": 1.0})
    spool.mark_sent(spool.read(0, 0)[0])
    spool.append("metrics", step=2, values={"a": 2.0})
    spool.close()
    log = tmp_path / "run" / "log.jsonl"
    whole = log.read_bytes()
    for torn in (b'{"kind":"metrics","t":17', b"\0" * 4096):
        log.write_bytes(whole + torn)
        spool = Spool(tmp_path / "run")
        assert log.read_bytes() == whole
        assert (spool.records, spool.pending) == (2, 1)
        assert spool.metrics() == {"a": [(1, 1.0), (2, 2.0)]}
        spool.close()
    log.write_bytes(whole[:10])  # a power failure: the mark is ahead of the log
    spool = Spool(tmp_path / "run")
    assert (spool.sent, spool.pending) == (0, 0)
    assert spool.append("metrics", step=1, values={"a": 1.0}) == first
    assert spool.pending == 1
    spool.close()


def test_a_record_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run")
    for size in (10, 5000, 10):
        spool.append("tags", values={"a": "x" * size})
    read = spool.read(0, 0, size=64)
    while read[-1].number < 2:
        read += spool.read(read[-1].end, read[-1].number + 1, size=64)
    assert [len(record.fields["values"]["a"]) for record in read] == [10, 5000, 10]
    spool.close()


HOLD = """
import sys, pathlib
from modules.tracking.outbox.spool import Spool
Spool(pathlib.Path(sys.argv[1])); print(1); input()
"""


def test_two_processes_never_write_to_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        for _ in range(2):
            with pytest.raises(SpoolInUseError, match=f"is in use: process {other.pid} writes to this run"):
                Spool(folder)
        other.send_signal(signal.SIGKILL)
        other.wait()
    Spool(folder).close()


def test_drafts_of_a_killed_process_go(tmp_path: Path) -> None:
    Spool(tmp_path).close()
    (tmp_path / "sent.json.new").touch()  # as earlier versions called them
    killed = tmp_path / f".sent.json.{os.uname().nodename}-{2**22 + 1}.tmp"  # beyond any process number
    killed.touch()
    spool = Spool(tmp_path)
    spool.write_json("run.json", {})
    spool.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "log.jsonl", "run.json"]
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_stops_nothing_and_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        for step in range(50):
            spool.append("metrics", step=step, values={"a": float(step)})
        spool.append("tags", values={"long": "x" * 2 * CHUNK})  # the buffer is full now as well
        for step in range(50, 60):
            spool.append("metrics", step=step, values={"a": float(step)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(spool.metrics().get("a", [])) <= 2
    spool.append("metrics", step=60, values={"a": 60.0})
    assert spool.metrics() == {"a": [(step, float(step)) for step in range(61)]}
    assert caplog.text.count("can't be written") == 1
    spool.close()


@pytest.mark.parametrize("written", [False, True])
def test_a_signal_in_the_middle_of_an_append_leaves_the_count_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    spool = Spool(tmp_path / "run")
    spool.append("tags", values={"a": "1"})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background Python is started without it
    with monkeypatch.context() as patch:
        whole = spool.write
        patch.setattr(spool, "write", lambda line: (written and whole(line), os.kill(os.getpid(), signal.SIGINT)))
        with pytest.raises(KeyboardInterrupt):
            spool.append("tags", values={"a": "2"})
    signal.signal(signal.SIGINT, before)
    assert spool.append("tags", values={"a": "3"}) == 1 + written
    last = spool.read(0, 0)[-1]
    assert (last.number, last.fields["values"]) == (1 + written, {"a": "3"})
    spool.mark_sent(last)
    assert spool.pending == 0
    spool.close()


def test_the_state_of_a_log_is_seen_without_opening_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not unsent(folder)
    spool = Spool(folder)
    assert last_record(folder)["kind"] == "unreadable"
    spool.append("status", status="FINISHED")
    assert unsent(folder)
    assert last_record(folder)["status"] == "FINISHED"
    spool.mark_sent(spool.read(0, 0)[0])
    assert not unsent(folder)
    spool.close()
