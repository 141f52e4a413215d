"""A disk that fills under a run's local log: no checkpoint, model or end is newer than the lines that tell of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from modules.config.loader import load_config
from modules.config.training import TrainingConfig
from modules.tracking.outbox.spool import CHUNK, Spool
from modules.tracking.stage_run import stage_run
from modules.tracking.tracked_run import TrackedRun
from modules.training.callbacks import Checkpoints, checkpoints_in
from modules.training.lightning_module import LanguageModel
from pipelines.pretrain import pretrain
from tests.helpers.models import ROOT
from tests.tracking.test_tracking import all_runs, quiet

STEPS = 20


def fill(spool: Spool) -> None:
    """From now on the log takes nothing more: /dev/full answers as a full disk does."""
    spool.writer = open("/dev/full", "ab", buffering=CHUNK)  # noqa: SIM115


def small_training(folder: Path) -> TrainingConfig:
    rows = "".join(
        json.dumps({"src_txt": "春眠不觉晓处处闻啼鸟"[n % 5 :]}, ensure_ascii=False) + "\n" for n in range(200)
    )
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    config: TrainingConfig = load_config(
        "pretrain",
        [
            "model=tiny", "model.num_hidden_layers=1", "model.hidden_size=16", "data.sequence_length=32",
            "data.path=rows.jsonl", f"train.max_steps={STEPS}", "train.batch_size=8", "train.batch_tokens=null",
            "train.warmup_steps=1", "train.validate_every_n_steps=5", "output_dir=out", "trainer.progress_bar=false",
            "trainer.accelerator=cpu", "tracking.log_system_metrics=false",
        ],
    )  # fmt: skip
    return config


def steps_of(name: str) -> list[int]:
    (run,) = all_runs()
    return [metric.step for metric in MlflowClient().get_metric_history(run.info.run_id, name)]


def after(function: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
    """The function, whose log's disk is full from when it has returned and `when` holds."""

    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        result = function(self, *arguments, **named)
        if when(self, *arguments):
            fill(self.trainer.logger.run.spool)
        return result

    return wrapped


@pytest.mark.parametrize(
    ("place", "step", "kept"),
    [("log_step", 3, None), ("log_step", 7, 5), ("log_step", 19, 15), ("on_validation_epoch_end", 10, 10)],
)
def test_no_checkpoint_outlives_lines_that_were_only_in_memory(
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    step: int,
    kept: int | None,
) -> None:
    config = small_training(store)
    with monkeypatch.context() as patch:
        full = after(getattr(LanguageModel, place), lambda module, *_: module.trainer.global_step == step)
        patch.setattr(LanguageModel, place, full)
        with pytest.raises(ValueError, match=r"log\.jsonl can't be written \(No space left on device\).*spool_dir"):
            pretrain(config)
    assert "sync` sends them" not in caplog.text  # what was in memory is gone
    assert max(checkpoints_in(Path("out/checkpoints")), default=None) == kept
    (run,) = all_runs()
    assert run.info.status == "FAILED"
    assert "No space left on device" in run.data.tags["end"]
    pretrain(small_training(store))
    assert steps_of("train/loss") == list(range(1, STEPS + 1))
    assert steps_of("val/loss") == [5, 10, 15, 20]
    (run,) = all_runs()
    assert (run.info.status, run.data.tags["end"]) == ("FINISHED", "finished")


def test_a_run_is_not_finished_before_its_model_and_last_validation_are_in_the_log(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        last = Checkpoints.on_validation_end

        def full(self: Checkpoints, trainer: Any, module: LanguageModel) -> None:
            last(self, trainer, module)
            if trainer.global_step == STEPS:
                fill(trainer.logger.run.spool)

        patch.setattr(Checkpoints, "on_validation_end", full)
        with pytest.raises(ValueError, match="No space left on device"):
            pretrain(small_training(store))
    assert json.loads(Path("out/checkpoints/origin.json").read_text())["finished"] is False
    pretrain(small_training(store))
    assert steps_of("val/loss") == [5, 10, 15, 20]
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert [output.step for output in run.outputs.model_outputs] == [STEPS, STEPS]  # the model, and its checkpoint


def test_any_stage_whose_results_did_not_reach_its_log_has_failed(store: Path) -> None:
    def stage() -> None:
        with stage_run("evaluate", quiet()) as run:
            run.log_metrics({"test/loss": 1.0})
            fill(run.spool)
            run.log_metrics({"test/loss_of_baseline": 2.0})

    with pytest.raises(ValueError, match="No space left on device"):
        stage()
    (found,) = all_runs()
    assert (found.info.status, found.data.metrics) == ("FAILED", {"test/loss": 1.0})
    assert found.data.tags["end"].startswith("failed: ")


def test_what_ended_a_stage_is_said_before_the_full_disk(store: Path) -> None:
    def stage() -> None:
        with stage_run("evaluate", quiet()) as run:
            fill(run.spool)
            raise KeyError("the cause")

    with pytest.raises(KeyError, match="the cause"):
        stage()
    (found,) = all_runs()
    assert (found.info.status, found.data.tags["end"]) == ("FAILED", "failed: KeyError: 'the cause'")


def test_a_disk_that_is_full_from_the_beginning_is_said_before_any_work(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = TrackedRun.log_params
    monkeypatch.setattr(TrackedRun, "log_params", lambda run, params: (fill(run.spool), tell(run, params)))
    with pytest.raises(ValueError, match="No space left on device"), stage_run("evaluate", quiet()):
        raise AssertionError("not reached")


def test_a_folder_of_logs_without_room_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("modules.system.process_locks.Path.write_text", full)
        with (
            pytest.raises(OSError, match=r"No space left on device: '.*/tracking/\w{32}'"),
            stage_run("evaluate", quiet()),
        ):
            raise AssertionError("not reached")
    with (
        stage_run("evaluate", quiet()) as run,
        pytest.raises(OSError, match=r"No space left on device: '.*/tracking/\w{32}/files/"),
        run.artifact("notes.txt"),
    ):
        full()


LIMITED = """
import resource
from pathlib import Path
from modules.tracking.outbox.spool import Spool
resource.setrlimit(resource.RLIMIT_FSIZE, (4001, 4001))
spool = Spool(Path("limited"))
for step in range(1000):
    spool.append("metrics", step=step, values={"loss": 1.0})
try:
    spool.sync_to_disk()
except ValueError as error:
    print(error)
spool.close()
"""


def test_a_limit_of_a_files_size_is_a_full_disk(store: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LIMITED], cwd=store, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "can't be written (File too large)" in done.stdout
    assert "tracking.spool_dir" in done.stdout
    spool = Spool(Path("limited"))
    steps = [step for step, _ in spool.metrics()["loss"]]
    assert steps == list(range(len(steps)))
    assert 0 < len(steps) < 100
    spool.append("metrics", step=1000, values={"loss": 2.0})
    spool.sync_to_disk()
    assert spool.metrics()["loss"][-1] == (1000, 2.0)
    spool.close()


def test_a_full_disk_keeps_nothing_from_the_store_that_is_in_the_log(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with stage_run("evaluate", quiet()) as run:
        run.log_metrics({"loss": 1.0})
        monkeypatch.setattr(Spool, "write_file", full)  # how far the store has got can't be noted
        assert run.flush()
    assert run.spool.pending == 0
    (found,) = all_runs()
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss": 1.0})
