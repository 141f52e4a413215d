"""Metrics reach the run in order and none is lost or repeated, whatever the store does; and what its end says."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from modules.config.base import StageConfig, TrackingConfig
from modules.system.redaction import redact_text
from modules.tracking.lightning_logger import RunLogger
from modules.tracking.outbox.spool import Spool
from modules.tracking.run_lifecycle import END, GONE, HOST, PID, RUNNING, STARTED, end_of, host, set_tags
from modules.tracking.stage_run import stage_run
from tests.helpers.models import ROOT
from tests.tracking.test_tracking import all_runs, quiet


def history(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in MlflowClient().get_metric_history(run_id, name)]


def only_run() -> Run:
    (run,) = all_runs()
    return run


def test_the_logger_sends_everything_in_order_with_steps(store: Path) -> None:
    noise = random.Random(0)
    losses = [(step, noise.random() * 10 ** noise.randint(-300, 300)) for step in range(1200)]
    with stage_run("pretrain", quiet()) as run:
        logger = RunLogger(run)
        for step, loss in losses:
            logger.log_metrics({"train/loss": loss, "train/tokens": float(step)}, step)
        logger.log_metrics({"val/loss": math.nan, "grad_norm": math.inf})
        logger.finalize("success")
    assert history(run.info.run_id, "train/loss") == losses  # bit by bit
    assert history(run.info.run_id, "train/tokens") == [(step, float(step)) for step in range(1200)]
    ((step, value),) = history(run.info.run_id, "val/loss")
    assert step == 0
    assert math.isnan(value)
    assert history(run.info.run_id, "grad_norm") == [(0, sys.float_info.max)]  # a database's infinity
    assert logger.history["train/loss"] == losses
    assert (logger.version, logger.name) == (run.info.run_id, "mlflow")
    assert only_run().data.tags[END] == "finished"


def test_a_run_that_goes_on_repeats_nothing_and_ends_anew(store: Path) -> None:
    with suppress(KeyboardInterrupt), stage_run("pretrain", quiet(seed=1)) as run:
        for step in (1, 2, 3):
            RunLogger(run).log_metrics({"train/loss": step / 10}, step)
        raise KeyboardInterrupt
    first = only_run()
    assert (first.info.status, first.data.tags[END]) == ("KILLED", "interrupted (Ctrl-C)")
    with stage_run("pretrain", quiet(seed=2), continues=run.info.run_id) as again:
        assert only_run().info.status == "RUNNING"
        logger = RunLogger(again)
        for step in (2, 3, 4):
            logger.log_metrics({"train/loss": step / 10, "lr": 1.0}, step)
        assert logger.history == {
            "train/loss": [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)],
            "lr": [(2, 1.0), (3, 1.0), (4, 1.0)],
        }
    assert again.info.run_id == run.info.run_id
    assert history(run.info.run_id, "train/loss") == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    last = only_run()
    assert (last.info.status, last.data.tags[END], last.data.params["cfg.seed"]) == ("FINISHED", "finished", "1")
    assert {file.path for file in MlflowClient().list_artifacts(run.info.run_id)} == {
        "config.yaml",
        "config.resumed-1.yaml",
        "environment.json",
        "environment.resumed-1.json",
    }


def test_a_run_goes_on_where_its_local_log_isnt(store: Path) -> None:
    """On another machine, or after a power failure that took the log's end: the store says what is logged."""
    with stage_run("pretrain", quiet()) as run:
        for step in (1, 2, 3):
            run.log_metrics({"train/loss": step / 10}, step)
    (store / "outputs" / "tracking" / run.info.run_id).rename(store / "elsewhere")
    with stage_run("pretrain", quiet(), continues=run.info.run_id) as again:
        logger = RunLogger(again)
        for step in (3, 4):
            logger.log_metrics({"train/loss": step / 10}, step)
    assert logger.history["train/loss"] == history(run.info.run_id, "train/loss")
    assert [step for step, _ in logger.history["train/loss"]] == [1, 2, 3, 4]


def test_only_a_run_of_this_store_that_nobody_writes_to_can_go_on(store: Path) -> None:
    with stage_run("pretrain", quiet()) as run:
        with pytest.raises(ValueError, match=rf"is in use: process {os.getpid()} writes to this run"):
            stage_run("pretrain", quiet(), continues=run.info.run_id).__enter__()
        assert only_run().info.status == "RUNNING"
    with pytest.raises(ValueError, match=r"run 0123abcd can't be continued: .*tracking store: sqlite:///.*mlflow\.db"):
        stage_run("pretrain", quiet(), continues="0123abcd").__enter__()
    assert [folder.name for folder in (store / "outputs" / "tracking").iterdir()] == [run.info.run_id]


def test_under_mlflow_run_the_commands_run_points_to_the_one_that_goes_on(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage_run("pretrain", quiet()) as run:
        pass
    made = MlflowClient().create_run(run.info.experiment_id, run_name="command")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    with stage_run("pretrain", quiet(), continues=run.info.run_id) as again:
        assert again.info.run_id == run.info.run_id
    tags = MlflowClient().get_run(made.info.run_id).data.tags
    assert (tags["stage"], tags["moyun.continues"]) == ("pretrain", run.info.run_id)
    assert tags[END] == f"went on in run {run.info.run_id}"
    assert "MLFLOW_RUN_ID" not in os.environ


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), ("KILLED", "interrupted (Ctrl-C)")),
        (SystemExit(143), ("KILLED", "terminated (SIGTERM)")),
        (ValueError("no rows in a.csv\nmore"), ("FAILED", "failed: no rows in a.csv")),
        (ValueError("at https://me:pw@host/x"), ("FAILED", "failed: at https://(redacted)@host/x")),
        (FloatingPointError("the loss is nan"), ("FAILED", "failed: FloatingPointError: the loss is nan")),
        (AssertionError(), ("FAILED", "failed: AssertionError: AssertionError")),
    ],
)
def test_an_end_is_told_truthfully(error: BaseException, expected: tuple[str, str]) -> None:
    assert end_of(error) == expected


def test_a_command_that_fails_after_its_stages_worked_says_so(store: Path) -> None:
    with suppress(ValueError), stage_run("main", quiet()):
        with stage_run("prepare", quiet()) as inner:
            inner.log_metrics({"rows/train": 3})
        raise ValueError("late")
    assert [run.data.tags[END] for run in all_runs()] == ["failed: late", "finished"]


KILLED = """
import os, signal, sys
from modules.config.base import StageConfig, TrackingConfig
from modules.tracking.stage_run import stage_run
with stage_run("pretrain", StageConfig(tracking=TrackingConfig(log_system_metrics=False))) as run:
    run.log_metrics({"train/loss": 0.5}, 1)
    run.flush()
    run.sender.stop()
    run.log_metrics({"train/loss": 0.25}, 2)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_runs_process_is_missed_by_the_next_stage_and_sync_sends_its_rest(
    store: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    from modules.config.commands import SyncConfig
    from pipelines.sync import sync

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=store, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with stage_run("prepare", quiet()) as next_run:
        killed = next(run for run in all_runs() if run.info.run_id != next_run.info.run_id)
        alive = MlflowClient().get_run(next_run.info.run_id)
        assert (alive.info.status, alive.data.tags[END]) == ("RUNNING", RUNNING)
    assert (killed.info.status, killed.data.tags[END]) == ("KILLED", GONE)
    assert f"run {killed.info.run_id} left unsent records: `python -m pipelines.sync` sends them" in caplog.text
    assert history(killed.info.run_id, "train/loss") == [(1, 0.5)]
    (sent,) = sync(SyncConfig())
    assert (sent.run_id, sent.sent, sent.left) == (killed.info.run_id, 1, 0)
    assert history(killed.info.run_id, "train/loss") == [(1, 0.5), (2, 0.25)]
    assert MlflowClient().get_run(killed.info.run_id).info.status == "KILLED"
    assert sync(SyncConfig()) == []
    assert "nothing waits (2 runs)" in capsys.readouterr().out


def test_a_killed_run_of_a_container_that_was_made_anew_is_missed_by_its_logs_lock(store: Path) -> None:
    """Whose name and process numbers nobody here knows: an earlier version has tags of them, this one none."""
    root = Path("outputs/tracking")
    with stage_run("prepare", quiet()) as alive:
        killed = MlflowClient().create_run(alive.info.experiment_id)
        process = {HOST: "another container", PID: "1", STARTED: "1.0", END: RUNNING}
        set_tags(killed.info.run_id, process)
        set_tags(alive.info.run_id, process)
        Spool(root / killed.info.run_id).close()
        with stage_run("prepare", quiet()):
            pass
        ended = MlflowClient().get_run(killed.info.run_id)
        assert (ended.info.status, ended.data.tags[END]) == ("KILLED", GONE)
        assert MlflowClient().get_run(alive.info.run_id).data.tags[END] == RUNNING


def test_runs_of_earlier_versions_are_missed_by_the_tags_that_name_their_process(store: Path) -> None:
    with stage_run("prepare", quiet()) as run:
        client = MlflowClient()
        old = client.create_run(run.info.experiment_id)
        elsewhere = client.create_run(run.info.experiment_id)
        mine = client.create_run(run.info.experiment_id)
        process = psutil.Process()
        tags = {HOST: host(), PID: str(process.pid), STARTED: str(process.create_time()), END: RUNNING}
        set_tags(old.info.run_id, tags | {STARTED: "1000000000.0"})  # its number was given anew
        set_tags(elsewhere.info.run_id, tags | {HOST: "other", PID: "1"})
        set_tags(mine.info.run_id, tags)
    with stage_run("prepare", quiet()):
        pass
    assert client.get_run(old.info.run_id).data.tags[END] == GONE
    for alive in (elsewhere, mine):
        assert client.get_run(alive.info.run_id).data.tags[END] == RUNNING


def test_a_run_whose_log_is_elsewhere_is_nobodys_to_judge(store: Path) -> None:
    """Of another machine, or another folder of this one: there its lock tells."""
    with stage_run("prepare", quiet()) as run:
        other = MlflowClient().create_run(run.info.experiment_id, tags={"stage": "pretrain", END: RUNNING})
    with stage_run("prepare", quiet()):
        pass
    found = MlflowClient().get_run(other.info.run_id)
    assert (found.info.status, found.data.tags[END]) == ("RUNNING", RUNNING)


def test_system_metrics_go_on_counting(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with stage_run("pretrain", StageConfig()) as run:
        time.sleep(0.3)
    with stage_run("pretrain", StageConfig(), continues=run.info.run_id) as run:
        time.sleep(0.3)
        assert RunLogger(run).history == {}
    steps = [step for step, _ in history(run.info.run_id, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 4


def test_what_is_kept_holds_no_secret_and_is_the_users_alone(store: Path) -> None:
    canary = "c4n4ry"
    uri = f"sqlite:///{store / 'mlflow.db'}?password={canary}"
    config = StageConfig(tracking=TrackingConfig(uri, log_system_metrics=False))
    with suppress(ValueError), stage_run("prepare", config) as run:
        run.log_table({"prompt": ["春"], "text": ["春风"]}, "samples.json")
        raise ValueError(f"can't read https://me:{canary}@host/rows.csv?token={canary}")
    folder = run.spool.folder
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"log.jsonl", "sent.json", "run.json", "config.yaml", "samples.json"} <= {path.name for path in files}
    assert [path for path in files if canary.encode() in path.read_bytes()] == []
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    assert json.loads((folder / "run.json").read_bytes())["store"] == redact_text(uri)
