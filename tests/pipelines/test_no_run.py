"""A refusal or a dry run leaves nothing in MLflow, and what `mlflow run` made for it says so and goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from modules.config.loader import load_config
from modules.tracking import run_selection
from modules.tracking.run_lifecycle import END
from modules.tracking.stage_run import checking, run_around, stage_run
from pipelines.cli.command_line import run_stage
from pipelines.evaluate import evaluate
from pipelines.finetune import finetune
from pipelines.main import main
from pipelines.prepare import prepare
from pipelines.pretrain import pretrain
from pipelines.register import register
from tests.helpers.models import ROOT
from tests.tracking.test_tracking import all_runs, quiet

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "prepare": prepare, "pretrain": pretrain, "finetune": finetune, "evaluate": evaluate, "register": register,
    "main": main,
}  # fmt: skip
QUIET = ["tracking.log_system_metrics=false"]
POEMS = f"model={ROOT / 'models' / 'poems'}"
FROM = f"train.init_from={ROOT / 'models' / 'poems'}"


@pytest.fixture
def rows(store: Path) -> Path:
    """A folder of rows, and beside it a file with a bad one."""
    (store / "rows").mkdir()
    for split in ("train", "validation", "test"):
        lines = [f'{{"src_txt": "春风{split}{number}"}}' for number in range(9)]
        (store / "rows" / f"{split}.jsonl").write_text("\n".join(lines))
    (store / "bad.jsonl").write_text('{"src_txt": "春"}\n{"src_txt": null}\n')
    return store / "rows"


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("prepare", ["source=nowhere.csv"], "nowhere.csv"),
        ("prepare", ["source=bad.jsonl"], "bad.jsonl"),
        ("pretrain", ["data.path=bad.jsonl", "output_dir=out"], "bad.jsonl"),
        ("pretrain", ["data.path=rows", "trainer.device_memory=0.001"], "a step would need"),
        ("finetune", [FROM, "data.path=rows", "train.sample_prompts=[" + "春" * 999 + "]"], "train.sample_prompts"),
        ("finetune", [FROM, "data.path=rows", "train.resume_from=nowhere"], "is no checkpoint"),
        ("evaluate", [POEMS, "data.path=bad.jsonl"], "bad.jsonl"),
        ("evaluate", ["model=models:/nobody@champion", "data.path=rows"], "models:/nobody@champion"),
        ("register", [POEMS, "data.path=bad.jsonl"], "bad.jsonl"),
        ("register", ["model=rows", "data.path=rows"], "rows"),
        ("main", ["prepare.source=nowhere.csv"], "nowhere.csv"),
    ],
)
def test_what_is_refused_is_no_run(stage: str, arguments: list[str], message: str, rows: Path) -> None:
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[stage](load_config(stage, [*arguments, *QUIET]))
    assert all_runs() == []
    assert not list((rows.parent / "outputs" / "tracking").glob("*"))
    assert not (rows.parent / "out").exists()


@pytest.mark.parametrize(
    ("stage", "arguments"),
    [
        ("prepare", ["source=rows"]),
        ("pretrain", ["data.path=rows"]),
        ("finetune", [FROM, "data.path=rows"]),
        ("evaluate", [POEMS, "data.path=rows"]),
        ("register", [POEMS, "data.path=rows"]),
        ("main", ["prepare.source=rows", "finetune.data.path=rows", FROM.replace("train", "finetune.train", 1)]),
    ],
)
def test_a_dry_run_is_no_run_and_makes_no_store(stage: str, arguments: list[str], rows: Path) -> None:
    (rows.parent / "mlflow.db").unlink()
    FUNCTIONS[stage](load_config(stage, [*arguments, "dry_run=true", *QUIET]))
    assert not (rows.parent / "mlflow.db").exists()
    assert not (rows.parent / "outputs").exists()


def test_a_stage_refused_after_others_have_run_fails_the_command_with_its_reason(store: Path) -> None:
    def stages() -> None:
        with run_around("main", quiet()):
            with checking("prepare", quiet()) as begin_run:
                begin_run()
            with checking("finetune", quiet()):
                raise ValueError("bad rows")

    with pytest.raises(ValueError, match="bad rows"):
        stages()
    assert [(run.data.tags["stage"], run.info.status, run.data.tags[END]) for run in all_runs()] == [
        ("main", "FAILED", "failed: bad rows"),
        ("prepare", "FINISHED", "finished"),
    ]


def test_a_run_that_goes_on_stays_as_it_had_ended_where_that_is_refused(store: Path) -> None:
    with pytest.raises(RuntimeError), stage_run("pretrain", quiet()) as run:
        raise RuntimeError("the power went")
    with pytest.raises(ValueError, match="other rows"), checking("pretrain", quiet(), run.info.run_id):
        raise ValueError("other rows")
    (found,) = all_runs()
    assert (found.info.status, found.data.tags[END]) == ("FAILED", "failed: RuntimeError: the power went")


# --- under `mlflow run` ---


def command_run(monkeypatch: pytest.MonkeyPatch, stage: str, experiment: str = "0", name: str | None = None) -> str:
    """What `mlflow run -e STAGE` does before the stage begins."""
    tags = {"mlflow.project.entryPoint": stage, "mlflow.source.type": "PROJECT"}
    made = MlflowClient().create_run(experiment, tags=tags, run_name=name)
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    monkeypatch.setenv("MOYUN_COMMAND_RUN", "")  # so that it is put back
    return str(made.info.run_id)


def run_of(run_id: str) -> Run:
    return MlflowClient().get_run(run_id)


def do(stage: str, *arguments: str, function: Callable[[Any], Any] | None = None) -> int:
    try:
        run_stage(stage, function or FUNCTIONS[stage], [*arguments, *QUIET])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_without_an_experiment_the_run_is_where_moyuns_are(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = command_run(monkeypatch, "prepare", name="rate three")
    assert do("prepare", "source=rows") == 0
    (run,) = [run for run in all_runs() if run.info.run_id != made]
    assert MlflowClient().get_experiment(run.info.experiment_id).name == "moyun"
    assert (run.info.run_name, run.info.status) == ("rate three", "FINISHED")
    assert run.data.tags["mlflow.project.entryPoint"] == "prepare"
    assert run_of(made).data.tags[END] == f"went on in run {run.info.run_id}"
    assert run_of(made).info.lifecycle_stage == "active"  # `mlflow run` would fail at a deleted one


@pytest.mark.parametrize("arguments", [[], ["tracking.experiment_name=Default"]])
def test_an_experiment_that_was_named_is_kept(
    arguments: list[str], rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = command_run(monkeypatch, "prepare", "0" if arguments else MlflowClient().create_experiment("mine"))
    assert do("prepare", "source=rows", *arguments) == 0
    (run,) = all_runs()
    assert (run.info.run_id, run.data.tags[END]) == (made, "finished")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("arguments", "code", "end"),
    [
        (["source=nowhere.csv"], 1, "refused: nowhere.csv is neither"),
        (["sauce=x"], 2, "refused: the configuration can't be used: - sauce"),
        (["source=rows", "dry_run=true"], 0, "a dry run, or done before"),
    ],
)
def test_a_refusal_is_said_by_the_commands_run_which_a_later_stage_deletes(
    arguments: list[str], code: int, end: str, named: bool, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = command_run(monkeypatch, "prepare", MlflowClient().create_experiment("mine") if named else "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{rows.parent / 'mlflow.db'}")  # as `mlflow run` does
    assert do("prepare", *arguments) == code
    (run,) = all_runs()
    assert run.data.tags[END].startswith(end)
    assert run.info.status == ("FAILED" if code else "FINISHED")
    assert run.info.run_name.startswith(f"prepare: {end}"[:100])
    MlflowClient().set_terminated(made, run.info.status)  # as `mlflow run` does
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("MOYUN_COMMAND_RUN", raising=False)
    for after, stage in ((60.0, "active"), (-1.0, "deleted")):
        monkeypatch.setattr(run_selection, "MLFLOW_RUN_ENDS", after)
        with stage_run("prepare", quiet()):
            pass
        assert run_of(made).info.lifecycle_stage == stage


def test_a_run_with_results_and_one_of_somebody_elses_project_stay(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = command_run(monkeypatch, "pretrain")
    assert do("prepare", "source=nowhere.csv") == 1  # called by a project whose entry point is another
    assert END not in run_of(made).data.tags
    with stage_run("prepare", quiet()) as run:
        assert run.info.run_id == made
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    assert do("prepare", function=Mock(side_effect=ValueError("no"))) == 1
    assert run_of(made).data.tags[END] == "finished"
    assert MlflowClient().search_runs(["0"], run_view_type=ViewType.DELETED_ONLY) == []
    assert os.environ["MLFLOW_RUN_ID"] == made
