"""Whose folder a run writes to, what it goes on with, and what it is refused for."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import mlflow
import pytest
import torch

from modules.checkpoint.weights import CheckpointError
from modules.config.loader import load_config
from modules.config.training import TrainingConfig
from modules.system.checksums import describe_files, write_file_list
from modules.system.signals import Stopped, StopRequest
from modules.training.callbacks import Selection, best_first, checkpoints_in
from modules.training.checkpoints.resume import claimed, newest_sound, settle_format
from modules.training.checkpoints.run_manifest import (
    CHECKPOINTS,
    RunManifest,
    manifest_differences,
    read_run_manifest,
    require_same,
    write_run_manifest,
)
from modules.training.planning.recipe import POETRY
from modules.training.precision import settle_precision
from pipelines.train import train
from tests.checkpoint.test_training_checkpoint import QUICK
from tests.helpers.models import ROOT


def config_of(*arguments: str) -> TrainingConfig:
    config = load_config(
        "pretrain", ["model=tiny", *QUICK, "train.max_steps=6", "trainer.precision=32-true", *arguments]
    )
    assert isinstance(config, TrainingConfig)
    return config


def origin(*arguments: str, **changes: str) -> RunManifest:
    config = dataclasses.asdict(config_of(*arguments))
    found = RunManifest("pretrain", "id", config, {"train": "a", "validation": "b"}, "t", None)
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def make_run(folder: Path, **changes: bool) -> Path:
    (folder / CHECKPOINTS).mkdir(parents=True)
    write_run_manifest(folder / CHECKPOINTS, dataclasses.replace(origin(), **changes))  # type: ignore[arg-type]
    return folder


def make_checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"step={step}.ckpt"
    path.mkdir(parents=True)
    (path / "part").write_text(str(step))
    write_file_list(path, describe_files([path / "part"]))
    return path


# --- the folder ---


def test_a_new_folder_goes_when_nothing_came_of_it(tmp_path: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), claimed(str(tmp_path / "out"), "auto"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("finished", [False, True])
def test_a_runs_folder_is_not_overwritten(finished: bool, tmp_path: Path) -> None:
    make_run(tmp_path, finished=finished)
    message = "it holds a run, which train.resume_from=auto goes on with"
    with pytest.raises(ValueError, match=message), claimed(str(tmp_path), None):
        pass


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    message = r"it holds thesis\.txt\. Nothing is overwritten"
    with pytest.raises(ValueError, match=message), claimed(str(tmp_path), "auto"):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_interrupted_run_is_found_and_tidied(tmp_path: Path) -> None:
    make_run(tmp_path)
    for name in (f"{CHECKPOINTS}/.step=5.ckpt.tmp", f"{CHECKPOINTS}/.step=3.ckpt.removed.tmp"):
        (tmp_path / name).mkdir()
    with claimed(str(tmp_path), "auto") as before:
        assert before == origin()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", CHECKPOINTS, "origin.json"]


def hold(folder: str, held: multiprocessing.synchronize.Event) -> None:  # type: ignore[name-defined]
    with claimed(folder, "auto"):
        held.set()
        time.sleep(60)


def test_the_second_run_names_the_first_and_a_killed_one_holds_nobody_back(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    owner = context.Process(target=hold, args=(str(tmp_path / "out"), held))
    owner.start()
    try:
        assert held.wait(60)
        with (
            pytest.raises(ValueError, match=f"is in use by process {owner.pid} on "),
            claimed(str(tmp_path / "out"), "auto"),
        ):
            pass
    finally:
        owner.kill()
        owner.join()
    with claimed(str(tmp_path / "out"), "auto") as before:
        assert before is None


# --- what was different ---


@pytest.mark.parametrize(
    ("arguments", "changes", "found"),
    [
        ((), {}, {}),
        (("output_dir=x", "trainer.devices=2", "train.sample_prompts=[a]", "data.path=elsewhere"), {}, {}),
        (("train.micro_batch_tokens=512",), {}, {}),
        (("train.learning_rate=1",), {}, {"train.learning_rate": "train.learning_rate was None, and is 1.0"}),
        (("trainer.precision=bf16-mixed",), {},
         {"trainer.precision": "trainer.precision was 32-true, and is bf16-mixed"}),
        (("seed=1",), {}, {"seed": "seed was 42, and is 1"}),
        ((), {"tokenizer": "u"}, {"tokenizer": "the tokenizer is another"}),
        ((), {"init_from": "w"}, {"train.init_from": "the weights that training starts from are others"}),
        ((), {"data": {"train": "a", "validation": "c"}}, {"data": "the rows for validation are others"}),
    ],
)  # fmt: skip
def test_what_is_different_is_named(arguments: tuple[str, ...], changes: dict[str, str], found: dict[str, str]) -> None:
    assert manifest_differences(origin(), origin(*arguments, **changes)) == found


def test_keys_that_are_newer_than_a_run_had_their_defaults_in_it() -> None:
    old = origin()
    for key in ("optimizer", "decay_fraction"):
        del old.config["train"][key]
    assert manifest_differences(old, origin()) == {}
    assert manifest_differences(old, origin("train.optimizer=muon")) == {
        "train.optimizer": "train.optimizer was adamw, and is muon"
    }


def made_before_recipes(*arguments: str) -> RunManifest:
    """As fine-tuning wrote it then, of a command with these keys."""
    usual = {"train.max_epochs": 10} | {key: value for key, value in POETRY.items() if key != "train.max_epochs"}
    config = load_config("finetune", [*(f"{key}={value}" for key, value in usual.items()), *arguments])
    settle_precision(config.trainer)
    found = dataclasses.asdict(config)
    del found["recipe"], found["data"]["mix"], found["data"]["mix_temperature"]
    return RunManifest("finetune", "id", found, {"train": "a"}, "t", "w")


@pytest.mark.parametrize("given", [[], ["train.max_steps=4"], ["train.learning_rate=1e-5", "train.max_steps=4"]])
def test_what_fine_tuning_had_before_there_were_recipes_it_has_still(given: list[str]) -> None:
    given = ["train.init_from=models/poems", "data.path=mine.csv", *given]
    old, config = made_before_recipes(*given), load_config("finetune", given)
    settle_format(config, None, old)
    now = dataclasses.replace(old, config=dataclasses.asdict(config))
    assert manifest_differences(old, now) == {}
    assert config.train.max_epochs == 10


def test_another_recipe_than_the_runs_is_not_passed_over_in_silence() -> None:
    given = ["train.init_from=models/poems", "data.path=mine.csv"]
    config = load_config("finetune", [*given, "recipe=own"])
    settle_format(config, None, made_before_recipes(*given))
    assert config.train.learning_rate is None  # to be worked out, and to be found different
    earlier = made_before_recipes(*given)
    for recipe, rate in (("own", 3e-4), ("poetry", None), (None, 3e-4)):
        earlier.config["recipe"] = "own"
        config = load_config("finetune", [*given, *([f"recipe={recipe}"] if recipe else [])])
        settle_format(config, None, earlier)
        assert config.train.learning_rate == rate


def test_another_optimizer_cannot_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.optimizer was adamw, and is muon\. Give what .* output_dir$"):
        require_same(origin(), origin("train.optimizer=muon"), ["train"], tmp_path)


def test_an_origin_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_run_manifest(tmp_path, origin("train.learning_rate=3e-4"))
    assert read_run_manifest(tmp_path) == origin("train.learning_rate=3e-4")
    (tmp_path / "origin.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_run_manifest(tmp_path)


# --- which checkpoint ---


def test_the_newest_sound_checkpoint_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert newest_sound(tmp_path) is None
    paths = [make_checkpoint(tmp_path, step) for step in (5, 10, 100)]
    assert newest_sound(tmp_path) == paths[2]
    (paths[2] / "part").write_text("999")
    (paths[1] / "part").unlink()
    with caplog.at_level(logging.WARNING):
        assert newest_sound(tmp_path) == paths[0]
    assert "damaged (part has other content)" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "damaged.step=10.ckpt",
        "damaged.step=100.ckpt",
        "step=5.ckpt",
    ]
    (paths[0] / "files.json").write_text("{")
    for _ in range(2):  # nor at the next start, which must not begin anew
        with pytest.raises(CheckpointError, match="none of the checkpoints in .* is sound"):
            newest_sound(tmp_path)


def test_nan_is_no_best_loss() -> None:
    paths = {step: Path(str(step)) for step in (1, 2, 3, 4)}
    validations = {1: {"val/loss": float("nan")}, 2: {"val/loss": 2.0}, 3: {"val/loss": 2.0}, 9: {"val/loss": 0.0}}
    assert best_first(paths, validations, Selection()) == [3, 2, 1]


# --- the whole stage ---


@pytest.fixture
def interrupted(tmp_path: Path, store: Path, rows: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stopped in its fourth step, as by SIGTERM."""
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "asked", property(lambda self: checkpoints_in(folder / CHECKPOINTS) != {}))
        folder = tmp_path / "out"
        with pytest.raises(Stopped, match="143"):
            train("pretrain", config_of(f"output_dir={folder}", "train.validate_every_n_steps=3"), rows)
    return folder


def test_a_changed_run_is_refused_unless_it_is_allowed(interrupted: Path, rows: datasets.Dataset) -> None:
    again = [
        f"output_dir={interrupted}",
        "train.validate_every_n_steps=3",
        "train.max_steps=8",
        "train.learning_rate=0.5",
    ]
    with pytest.raises(
        ValueError, match=r"train\.max_steps was 6, and is 8.*allow_changed=\[train\.learning_rate,train\.max_steps\]"
    ):
        train("pretrain", config_of(*again), rows)
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert (run.info.status, run.data.tags["end"]) == ("KILLED", "terminated (SIGTERM)")  # as it ended
    with pytest.raises(ValueError, match="the rows for train and validation are others"):
        train("pretrain", config_of(*again, "train.allow_changed=[train,tokenizer]"), rows.select(range(100)))
    result = train("pretrain", config_of(*again, "train.allow_changed=[train]"), rows)
    assert max(checkpoints_in(interrupted / CHECKPOINTS)) == 8
    tags = mlflow.get_run(result.run_id).data.tags
    told = "after step 3: train.learning_rate was None, and is 0.5; train.max_steps was 6, and is 8"
    assert [text for name, text in tags.items() if name.startswith("moyun.changed-")] == [told]
    rates = mlflow.MlflowClient().get_metric_history(result.run_id, "lr")
    assert [metric.value for metric in rates if metric.step > 3] == [0.5] * 5  # what was allowed is done
    with pytest.raises(
        ValueError, match=r"holds a finished run that was made differently: seed was 42, and is 1; the rows"
    ):
        train("pretrain", config_of(*again, "seed=1"), rows)
    (before, *_), known = (
        checkpoints_in(interrupted / CHECKPOINTS).values(),
        mlflow.search_runs(search_all_experiments=True),
    )
    done = train("pretrain", config_of(*again), rows)  # a scheduler's second start
    assert (done.run_id, done.model_uri, done.metrics) == (result.run_id, result.model_uri, result.metrics)
    assert done.model == interrupted / "model"
    assert before.exists()
    assert len(mlflow.search_runs(search_all_experiments=True)) == len(known)


def test_what_was_chosen_for_the_machine_stays_what_it_was(interrupted: Path, rows: datasets.Dataset) -> None:
    """Unset, micro_batch_tokens follow from what is free on a GPU; the manifest holds what they came to."""
    manifest = read_run_manifest(interrupted / CHECKPOINTS)
    assert manifest
    assert manifest.config["train"]["micro_batch_tokens"] == 2048
    manifest.config["train"]["micro_batch_tokens"] = 300
    write_run_manifest(interrupted / CHECKPOINTS, manifest)
    result = train("pretrain", config_of(f"output_dir={interrupted}", "train.validate_every_n_steps=3"), rows)
    assert result.plan.demand.micro_batch_tokens == 300
    finished = read_run_manifest(interrupted / CHECKPOINTS)
    assert finished
    assert (finished.finished, finished.config["train"]["micro_batch_tokens"]) == (True, 300)


def test_a_dry_run_leaves_an_interrupted_run_alone(interrupted: Path, rows: datasets.Dataset) -> None:
    train("pretrain", config_of(f"output_dir={interrupted}", "dry_run=true"), rows)
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [run.info.status for run in runs] == ["KILLED"]  # a dry run is none


def test_a_run_from_anothers_checkpoint_begins_there_again(
    interrupted: Path, rows: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off before it has a checkpoint of its own; from fresh weights it would be another run."""
    (checkpoint,) = checkpoints_in(interrupted / CHECKPOINTS).values()
    given = [f"output_dir={tmp_path / 'branch'}", "train.validate_every_n_steps=3", f"train.resume_from={checkpoint}"]
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.train.tracked_fit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train("pretrain", config_of(*given), rows)
    train("pretrain", config_of(*given), rows)
    branch = read_run_manifest(tmp_path / "branch" / CHECKPOINTS)
    assert branch
    assert branch.resumed_from == str(checkpoint.resolve())
    history = mlflow.MlflowClient().get_metric_history(branch.run_id, "train/loss")
    assert [metric.step for metric in history] == [4, 5, 6]
    last = tmp_path / "branch" / CHECKPOINTS / "last.ckpt"
    more = config_of("output_dir=more", "train.validate_every_n_steps=3", f"train.resume_from={last}")
    with pytest.raises(ValueError, match=r"is of step 6, and training ends at step 6"):
        train("pretrain", more, rows)


def test_it_is_one_run_with_each_step_once(interrupted: Path, rows: datasets.Dataset) -> None:
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "KILLED"
    result = train("pretrain", config_of(f"output_dir={interrupted}", "train.validate_every_n_steps=3"), rows)
    assert result.run_id == run.info.run_id
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FINISHED"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5, 6]


def test_a_step_that_is_not_finite_can_be_skipped(
    rows: datasets.Dataset, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if its rows had never been: neither weights nor moments move."""
    from modules.training.lightning_module import LanguageModel

    step_of = LanguageModel._step

    def poisoned(self: LanguageModel, batch: object) -> torch.Tensor:
        loss = step_of(self, batch)  # type: ignore[arg-type]
        return loss * float("nan") if self.training and self.trainer.global_step == 2 else loss

    monkeypatch.setattr(LanguageModel, "_step", poisoned)
    result = train("pretrain", config_of(f"output_dir={tmp_path / 'out'}", "train.on_nonfinite=skip"), rows)
    history = mlflow.MlflowClient().get_metric_history(result.run_id, "train/skipped_steps")
    assert [(metric.step, metric.value) for metric in history] == [(3, 1), (4, 1), (5, 1), (6, 1)]
    assert result.metrics
    assert result.metrics["val/loss"] > 0
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 2 .*training documents \d+ “"):
        train("pretrain", config_of(f"output_dir={tmp_path / 'other'}"), rows)


def test_a_stage_ends_with_the_mlflow_run_that_started_it(tmp_path: Path) -> None:
    """A process that stands for `mlflow run` is killed; what it started must not go on for nobody."""
    program = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time\\n"
        "from pipelines.cli.command_line import run_stage\\n"
        'run_stage("generate", lambda config: (print("up", flush=True), time.sleep(60)), [])\'],'
        " env=os.environ | {'MLFLOW_RUN_ID': 'x'})\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child, up = int(parent.stdout.readline()), parent.stdout.readline()
    assert up == "up\n"
    parent.kill()
    parent.wait()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it went on")
