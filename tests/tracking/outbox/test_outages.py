"""A store that dies, hangs, fails or drops answers holds nothing up and loses nothing; so with crashes, full disks."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import sqlalchemy
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from modules.config.base import TrackingConfig
from modules.config.commands import SyncConfig
from modules.tracking.outbox import sender, spool
from modules.tracking.outbox.store import BRIEF, TIMEOUT, be_brief, patient
from modules.tracking.outbox.store_check import require_store
from modules.tracking.stage_run import connect
from modules.tracking.tracked_run import TrackedRun
from pipelines.sync import sync
from tests.helpers.faulty_store import Fault, FaultyStore


@pytest.fixture
def faulty(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    monkeypatch.setattr(sender, "INTERVAL", 0.01)
    monkeypatch.setattr(sender, "SILENCE", 0.0)
    for name in BRIEF:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    server = FaultyStore()
    mlflow.set_tracking_uri(server.uri)
    yield server
    server.stop()


def open_run(faulty: FaultyStore, flush_timeout: float = 30) -> TrackedRun:
    return TrackedRun(mlflow.MlflowClient(faulty.uri).get_run(faulty.run_id), Path("outputs/tracking"), flush_timeout)


def log_steps(run: TrackedRun, start: int, stop: int) -> list[tuple[int, float]]:
    for step in range(start, stop):
        run.log_metrics({"train/loss": 1 / (step + 1), "lr": 0.5}, step)
    return [(step, 1 / (step + 1)) for step in range(start, stop)]


def wait_until(happened: Callable[[], bool]) -> None:
    while not happened():
        time.sleep(0.01)


@pytest.mark.parametrize("fault", ["hangs", "500", "database", "commits then drops", "dead"])
def test_what_is_logged_meanwhile_arrives_once_and_in_order(
    faulty: FaultyStore, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(faulty)
    expected = log_steps(run, 0, 100)
    assert run.flush()
    faulty.fault = fault
    expected += log_steps(run, 100, 2100)
    run.set_tags({"a": "1"})
    run.log_params({"cfg.seed": "42"})
    run.log_text("text", "deep/er/a.txt")
    if fault == "dead":
        wait_until(lambda: run.sender.failures > 1)
    else:
        calls = len(faulty.calls)
        wait_until(lambda: len(faulty.calls) > calls + 1)
    faulty.fault = "none"
    faulty.release()
    expected += log_steps(run, 2100, 2200)
    run.end("FINISHED", "finished")
    assert faulty.history("train/loss") == expected
    assert len(faulty.history("lr")) == len(expected)
    if fault == "commits then drops":
        assert faulty.repeated > 0
    assert (faulty.tags, faulty.params) == ({"a": "1", "end": "finished"}, {"cfg.seed": "42"})
    assert faulty.files == {"deep/er/a.txt": b"text"}
    assert (faulty.status, run.spool.pending, run.spool.refused) == ("FINISHED", 0, 0)
    messages = [record.getMessage()[:34] for record in caplog.records if record.name == "moyun.tracking"]
    assert messages == ["tracking: the store doesn't take w", "tracking: the store is back"]


def test_a_store_that_is_back_is_caught_up_with_at_a_pace_that_leaves_training_alone(
    faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(spool, "decode_record", lambda line: decoded.append(line) or json.loads(line))
    run = open_run(faulty)
    faulty.fault = "dead"
    expected = log_steps(run, 0, 5000)
    monkeypatch.setattr(sender, "SHARE", 1e-9)  # so that it rests for LONGEST_PAUSE after each call
    faulty.fault = "none"
    wait_until(lambda: run.spool.sent_records > 0)
    time.sleep(0.2)
    assert run.spool.pending > 4000
    assert run.flush()  # who waits gets all of it at once
    assert faulty.history("train/loss") == expected
    assert len(decoded) < 1.2 * len(expected)  # each once, but for a chunk's torn last line
    run.end("FINISHED", "finished")


def test_what_is_left_at_the_end_is_said_in_one_line_and_sync_sends_it(
    faulty: FaultyStore, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(faulty, flush_timeout=0.2)
    expected = log_steps(run, 0, 10)
    assert run.flush()
    faulty.fault = "dead"
    expected += log_steps(run, 10, 1000)
    run.end("FINISHED", "finished")
    assert re.search(
        r"tracking: 992 of 1002 records of run \w{32} are still to be sent \(connection refused\): "
        r"`python -m pipelines.sync` sends them",
        caplog.text,
    )
    config = SyncConfig(TrackingConfig(faulty.uri))
    with pytest.raises(ValueError, match=r"tracking store http://127.0.0.1:\d+ can't be used: .*refused.* Start it"):
        sync(config)
    faulty.fault = "none"
    (sent,) = sync(config)
    assert (sent.run_id, sent.sent, sent.left) == (faulty.run_id, 992, 0)
    assert faulty.history("train/loss") == expected
    assert (faulty.status, faulty.tags["end"]) == ("FINISHED", "finished")
    assert f"{faulty.run_id}  992 sent, 0 left" in capsys.readouterr().out


def test_a_dead_store_is_waited_for_once(faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(faulty, flush_timeout=0.2)
    faulty.fault = "dead"
    log_steps(run, 0, 10)
    assert run.log_model(Path("model")) is None
    polls: list[float] = []
    monkeypatch.setattr(sender.time, "sleep", polls.append)
    run.end("FINISHED", "finished")
    assert polls == []


def test_sync_leaves_a_run_alone_that_is_still_written_to(
    faulty: FaultyStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(faulty)
    config = SyncConfig(TrackingConfig(faulty.uri))
    (found,) = sync(config)
    assert (found.sent, found.left) == (0, 0)
    assert f"{faulty.run_id}  still written to by process {os.getpid()}, which sends it" in capsys.readouterr().out
    run.end("FINISHED", "finished")
    assert sync(config) == []


def test_sync_names_the_run_that_the_store_does_not_take(
    faulty: FaultyStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(faulty, flush_timeout=0)
    faulty.fault = "dead"
    run.log_metrics({"refused!": 1.0}, 1)
    run.end("FINISHED", "finished")
    faulty.fault = "none"
    faulty.deleted = True
    about = run.spool.read_json("run.json", {})
    run.spool.write_json("run.json", about | {"store": "http://other:5000"})
    with pytest.raises(ValueError, match="3 records are left; nothing is lost"):
        sync(SyncConfig(TrackingConfig(faulty.uri)))
    printed = capsys.readouterr().out
    assert f"{faulty.run_id}  0 sent, 3 left: " in printed
    assert "(the run was made in http://other:5000)" in printed


def test_sync_in_the_wrong_place_says_so(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="tracking.spool_dir=elsewhere isn't a folder here"):
        sync(SyncConfig(TrackingConfig(spool_dir="elsewhere")))
    assert sync(SyncConfig()) == []
    assert "nothing waits (0 runs)" in capsys.readouterr().out


def test_sync_makes_no_store(store: Path, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(faulty, flush_timeout=0)
    faulty.fault = "dead"
    run.end("FINISHED", "finished")
    (store / "mlflow.db").unlink()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ValueError, match=r"there is no tracking store sqlite:///.*mlflow.db: name the runs' own"):
        sync(SyncConfig())
    assert not (store / "mlflow.db").exists()


def test_what_the_store_refuses_is_kept_aside_and_holds_up_nothing(
    faulty: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(faulty)
    log_steps(run, 0, 3)
    run.log_metrics({"bad!": 1.0, "good": 2.0}, 3)
    run.log_params({"cfg.a!": "1", "cfg.b": "2", "cfg.c": "3"})
    log_steps(run, 4, 8)
    run.end("FINISHED", "finished")
    assert [step for step, _ in faulty.history("train/loss")] == [0, 1, 2, 4, 5, 6, 7]
    assert (faulty.history("good"), faulty.params) == ([(3, 2.0)], {"cfg.b": "2", "cfg.c": "3"})
    refused = [json.loads(line) for line in (run.spool.folder / "refused.jsonl").read_text().splitlines()]
    assert [entry["record"]["values"] for entry in refused] == [{"bad!": 1.0}, {"cfg.a!": "1"}]
    assert all("a name with ! is invalid" in entry["why"] for entry in refused)
    assert caplog.text.count("the store refused 2 records") == 1


def test_a_database_in_trouble_behind_a_store_that_answers_refuses_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "INTERVAL", 0.01)
    mlflow.set_tracking_uri(connect())
    log_metrics, trouble = SqlAlchemyStore._log_metrics, [True]

    def exhausted(self: SqlAlchemyStore, *arguments: Any) -> Any:
        with self.ManagedSessionMaker(read_only=False):
            if trouble:
                raise sqlalchemy.exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached")
        return log_metrics(self, *arguments)

    monkeypatch.setattr(SqlAlchemyStore, "_log_metrics", exhausted)
    run = TrackedRun(mlflow.MlflowClient().create_run("0"), Path("outputs/tracking"), 10)
    expected = log_steps(run, 0, 50)
    wait_until(lambda: run.sender.failures > 1)
    trouble.clear()
    expected += log_steps(run, 50, 60)
    run.end("FINISHED", "finished")
    stored = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in stored] == expected
    assert (run.spool.refused, run.spool.pending) == (0, 0)


def test_sync_tries_again_what_was_refused_unless_later_records_say_it_anew(
    faulty: FaultyStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Versions before took a database's trouble for a refusal; and a store may be mended."""
    run = open_run(faulty)
    faulty.forbidden = "loss|note|!"
    log_steps(run, 0, 3)
    run.set_tags({"note": "early", "note.other": "1"})
    run.log_metrics({"never!": 1.0}, 3)
    run.flush()
    faulty.forbidden = "!"
    run.set_tags({"note": "late"})
    run.end("FINISHED", "finished")
    assert run.spool.refused == 6
    config = SyncConfig(TrackingConfig(faulty.uri))
    (sent,) = sync(config)
    assert (sent.sent, sent.left) == (4, 0)
    assert faulty.history("train/loss") == [(step, 1 / (step + 1)) for step in range(3)]
    assert len(faulty.history("lr")) == 3
    assert (faulty.tags, faulty.status) == ({"note": "late", "note.other": "1", "end": "finished"}, "FINISHED")
    (line,) = (run.spool.folder / "refused.jsonl").read_text().splitlines()
    assert json.loads(line)["record"]["values"] == {"never!": 1.0}
    assert "4 sent, 0 left: 1 refused, see" in capsys.readouterr().out
    faulty.forbidden = "nothing"
    (sent,) = sync(config)
    assert sent.sent == 1
    assert sync(config) == []


def test_nothing_is_refused_because_the_run_was_deleted(faulty: FaultyStore) -> None:
    """It can be restored."""
    run = open_run(faulty, flush_timeout=0.2)
    faulty.deleted = True
    run.log_metrics({"refused!": 1.0}, 1)
    run.end("FINISHED", "finished")
    assert (run.spool.refused, run.spool.pending) == (0, 3)


@pytest.mark.parametrize(("fault", "why"), [("hangs", "no answer within 0.5 s"), ("500", "5xx"), ("dead", "refused")])
def test_a_store_that_is_away_at_the_start_stops_the_stage(faulty: FaultyStore, fault: Fault, why: str) -> None:
    uri = faulty.uri.replace("//", "//me:c4n4ry@")
    faulty.fault = fault
    expected = rf"the tracking store http://\(redacted\)@127.0.0.1:\d+ can't be used: .*{why}.*tracking.tracking_uri="
    with pytest.raises(ValueError, match=expected) as caught:
        require_store(uri, seconds=0.5)
    assert "c4n4ry" not in str(caught.value)


@pytest.mark.parametrize("uri", ["postgresql+psycopg2://me:c4n4ry@127.0.0.1:9/x", "sqlite:////proc/mlflow.db"])
def test_a_database_that_is_away_at_the_start_stops_the_stage(store: Path, uri: str) -> None:
    pytest.importorskip("psycopg2")
    with pytest.raises(ValueError, match=r"the tracking store .* can't be used: ") as caught:
        require_store(uri)
    assert "c4n4ry" not in str(caught.value)


def test_large_transfers_are_given_time_unless_the_user_said_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BRIEF:
        monkeypatch.delenv(name, raising=False)
    be_brief()
    with patient():
        assert TIMEOUT not in os.environ
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"  # a server that hangs isn't waited for eight times
    assert {name: os.environ[name] for name in BRIEF} == BRIEF
    monkeypatch.setenv(TIMEOUT, "33")
    be_brief()
    with patient():
        assert os.environ[TIMEOUT] == "33"


def test_a_line_that_cannot_be_read_is_refused_and_the_next_are_sent(faulty: FaultyStore) -> None:
    folder = Path("outputs/tracking") / faulty.run_id
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_bytes(b'{"kind":"metr\x00\xff\n')
    run = open_run(faulty)
    log_steps(run, 1, 2)
    run.end("FINISHED", "finished")
    assert faulty.history("train/loss") == [(1, 0.5)]
    assert run.spool.refused == 1
