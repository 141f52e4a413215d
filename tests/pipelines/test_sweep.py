"""A sweep as its command runs it: real trainings in real processes, killed in the middle and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from modules.config.base import ConfigError
from modules.config.loader import load_config
from modules.evaluation.sweeps.study import Study, import_optuna
from modules.tokenizer.tokenizer import Tokenizer, train_tokenizer
from pipelines.sweep import sweep
from tests.helpers.models import ROOT, make_config, make_decoder, save_model

KEYS = [
    "train.init_from=start", "data.path=rows.csv", "data.sequence_length=48", "data.max_rows=40",
    "train.max_epochs=null", "train.max_steps=4", "train.warmup_steps=1", "train.schedule=cosine",
    "train.validate_every_n_steps=2",
    "train.batch_size=4", "train.sample_prompts=[]", "tracking.log_system_metrics=false", "output_dir=out",
    "trainer.precision=32-true",
]  # fmt: skip
SEARCHED = ["space.train.learning_rate=1e-4,3e-3", "space.lora.rank=0,2"]


@pytest.fixture
def workplace(store: Path, tokenizer: Tokenizer, poems: dict[str, list[str]]) -> Path:
    save_model(store / "start", make_decoder(make_config(tokenizer.vocab_size), spread=1.0), tokenizer, {})
    (store / "rows.csv").write_text("src_txt\n" + "\n".join(poems["train"][:40]), encoding="utf-8")
    return store


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.sweep", *KEYS, *arguments]
    search = {"PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"}
    with Path("said.txt").open("a") as said:
        return subprocess.Popen(command, env=os.environ | search, stdout=said, stderr=subprocess.STDOUT, text=True)


def await_file(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, Path("said.txt").read_text(encoding="utf-8")
        time.sleep(0.05)


def trials_of(folder: Path) -> list[Any]:
    return Study(folder, load_config("sweep", [*KEYS, *SEARCHED]), []).outcomes()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_was_stopped_goes_on_with_nothing_lost_and_nothing_doubled(workplace: Path, number: int) -> None:
    arguments = [*SEARCHED, "confirm_seeds=1"]
    process = started(*arguments)
    await_file(workplace / "out" / "trials" / "001" / "checkpoints" / "last.ckpt", process)
    process.send_signal(number)
    code = process.wait()
    assert code == (-9 if number == signal.SIGKILL else 143)
    done = [one for one in trials_of(workplace / "out") if one.state == "finished"]
    assert [one.number for one in done][:1] == [0]
    assert started(*arguments).wait() == 0, Path("said.txt").read_text(encoding="utf-8")

    outcomes = trials_of(workplace / "out")
    assert [one.state for one in outcomes] == ["finished"] * 4
    assert outcomes[0] == done[0]
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    runs = [run for run in runs if run.data.tags.get("stage") == "sweep" or "mlflow.parentRunId" in run.data.tags]
    assert len(runs) == 1 + 4 + 2  # the sweep, its trials, and two with another seed
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    best = min(outcomes, key=lambda one: one.value)
    assert parent.data.metrics["val/loss"] == best.value
    assert {run.info.run_name for run in runs if run is not parent} >= {one.name for one in outcomes}
    for one in outcomes:  # what the store has of each is what counted
        assert MlflowClient().get_run(one.run_id).data.params["cfg.lora.rank"] == one.values["lora.rank"]
    assert [path.name for path in (workplace / "out" / "trials").iterdir()] == [f"{best.number:03d}"]
    assert (workplace / "out" / "sweep.html").is_file()

    before = Path("said.txt").read_text(encoding="utf-8")
    assert started(*arguments).wait() == 0
    again = Path("said.txt").read_text(encoding="utf-8").removeprefix(before)
    assert "verdict" in again
    assert "trial 0  " not in again.partition("sweep: 4 finished")[0]  # nothing is trained anew
    assert len(mlflow.search_runs(search_all_experiments=True, filter_string="tags.stage = 'sweep'")) == 1


def test_trials_are_ended_early_and_say_at_which_step(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The median pruner begins after three trials: the fourth, whose rate learns nothing, ends early."""
    rates = "space.train.learning_rate=3e-3,2e-3,1e-3,1e-7"
    arguments = [*KEYS, rates, "pruner=median", "confirm_seeds=0", "train.max_steps=6", "data.max_rows=24"]
    result = sweep(load_config("sweep", arguments))
    assert result
    assert [one.state for one in result.outcomes] == ["finished", "finished", "finished", "stopped"]
    stopped = result.outcomes[3]
    assert stopped.stopped_at == 2
    run = MlflowClient().get_run(stopped.run_id)
    assert (run.info.status, run.data.tags["end"]) == ("FINISHED", "stopped early at step 2, by pruner=median")
    assert result.model
    assert (result.model / "model.safetensors").is_file()
    (model,) = models_of(result.best.run_id)
    scored = {metric.key: metric for metric in model.metrics}
    rows = {
        each.tags[0].value: each.dataset for each in MlflowClient().get_run(result.best.run_id).inputs.dataset_inputs
    }
    assert scored["val/loss"].value == result.best.value  # by which the Models tab ranks it among other models
    assert scored["val/loss"].dataset_digest == rows["validation"].digest
    assert MlflowClient().get_run(result.run_id).data.tags["model"] == model.model_uri
    assert models_of(result.run_id) == []  # the trial is what made it


def models_of(run_id: str) -> list[Any]:
    """Those with weights."""
    found = mlflow.search_logged_models(
        experiment_ids=[MlflowClient().get_run(run_id).info.experiment_id],
        filter_string=f"source_run_id = '{run_id}'", output_format="list",
    )  # fmt: skip
    return [model for model in found if model.name == "model"]


def test_trials_that_are_scored_on_other_rows_or_tokens_are_refused_before_there_is_a_sweep(
    workplace: Path, poems: dict[str, list[str]]
) -> None:
    with pytest.raises(ValueError, match=r"couldn't be compared.*space\.data\.max_rows changes the validation rows"):
        sweep(load_config("sweep", [*keys_without("data.max_rows"), "space.data.max_rows=20,40", "trials=2"]))
    keys = [*keys_without("data.sequence_length"), "data.over_long=cut"]
    with pytest.raises(ValueError, match=r"sequence_length changes the scored characters; .* each of them fits into"):
        sweep(load_config("sweep", [*keys, "space.data.sequence_length=16,24"]))
    other = train_tokenizer(poems["train"][:9], "character", 300, 1)
    save_model(workplace / "other", make_decoder(make_config(other.vocab_size)), other, {})
    keys = [*keys_without("train.init_from"), "space.train.init_from=start,other"]
    with pytest.raises(ValueError, match=r"changes the .*tokenizer; a loss per token can't be compared: give metric="):
        sweep(load_config("sweep", keys))
    assert not (workplace / "out").exists()
    (workplace / "more.csv").write_text("src_txt\n" + "\n".join(poems["train"][:60]), encoding="utf-8")
    rows = ["space.data.path=rows.csv,more.csv", "data.validation_path=rows.csv", "dry_run=true"]
    sweep(load_config("sweep", [*keys_without("data.path"), *rows]))


def keys_without(name: str) -> list[str]:
    return [key for key in KEYS if not key.startswith(name)]


def test_a_finished_sweep_of_rows_that_have_changed_is_refused(workplace: Path) -> None:
    arguments = [*KEYS, "space.train.learning_rate=1e-3,2e-3", "trials=1", "confirm_seeds=0"]
    first = sweep(load_config("sweep", arguments))
    assert sweep(load_config("sweep", arguments)) == first
    with (workplace / "rows.csv").open("a", encoding="utf-8") as file:
        file.write("\n床前明月光，疑是地上霜。")
    with pytest.raises(ValueError, match=r"output_dir=out holds trials that were made from other rows"):
        sweep(load_config("sweep", arguments))


@pytest.mark.timeout(900)
def test_trials_of_main_end_with_finetune_and_are_confirmed(workplace: Path) -> None:
    """By validation rows: nothing is scored on test rows or registered, and the rows are prepared once."""
    stages = [key.replace("train.", "finetune.train.", 1) for key in KEYS if key.startswith("train.")]
    arguments = [
        "stage=main", "prepare.source=rows.csv", "finetune.data.path=<prepare>", "finetune.data.sequence_length=48",
        *stages, "space.finetune.train.learning_rate=1e-4,3e-3", "confirm_seeds=1", "output_dir=out",
        "finetune.trainer.precision=32-true", "tracking.log_system_metrics=false",
    ]  # fmt: skip
    result = sweep(load_config("sweep", arguments))
    assert result
    assert result.confirmation
    assert result.confirmation.test
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    stages_done = [run.data.tags["stage"] for run in runs if "moyun.reused_from" not in run.data.tags]
    assert sorted(stages_done) == sorted(["sweep", "prepare", *["main", "finetune"] * 4])
    assert not MlflowClient().search_registered_models()
    (model,) = models_of(result.best.facts["trained_in"])
    assert MlflowClient().get_run(result.run_id).data.tags["model"] == model.model_uri
    assert MlflowClient().get_run(result.best.run_id).data.metrics["val/loss"] == result.best.value


def test_what_the_stage_refuses_is_refused_before_there_is_a_sweep(workplace: Path) -> None:
    """96 is the most that the model can read: known by the stage's dry run alone."""
    keys = [key for key in KEYS if not key.startswith("data.sequence_length")]
    with pytest.raises(
        ValueError, match=r"with data\.sequence_length=512: data\.sequence_length=512 is over the model's"
    ):
        sweep(load_config("sweep", [*keys, "space.data.sequence_length=48,512"]))
    assert not (workplace / "out").exists()
    assert not mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.stage = 'sweep'", output_format="list"
    )


def test_a_dry_run_says_what_it_costs_and_leaves_nothing(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(load_config("sweep", [*KEYS, *SEARCHED, "dry_run=true"])) is None
    said = capsys.readouterr().out
    assert "4 trials" in said
    assert "6 further trainings: the best and the next with 3 seeds each" in said
    assert "finetune: what will be done" in said
    assert not (workplace / "out").exists()


def test_more_workers_than_cores_are_refused(workplace: Path) -> None:
    with pytest.raises(ValueError, match="workers=500: each"):
        sweep(load_config("sweep", [*KEYS, *SEARCHED, "workers=500"]))


def test_without_optuna_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'moyun\[sweep\]'"):
        import_optuna()


def test_the_command_line_tells_how_to_sweep(workplace: Path) -> None:
    command = [sys.executable, "-m", "pipelines.finetune", "train.init_from=start", "train.learning_rate=1e-4,3e-4"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": f"{ROOT}"}, capture_output=True, text=True)
    assert done.returncode == 2
    wanted = "python -m pipelines.sweep stage=finetune space.train.learning_rate=1e-4,3e-4 train.init_from=start"
    assert wanted in done.stderr
