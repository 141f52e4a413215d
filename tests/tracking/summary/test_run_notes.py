"""What a run's description says."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import datasets
import pytest
from mlflow import MlflowClient

from modules.config.loader import load_config
from modules.tracking.stage_run import log_rows, stage_run
from modules.tracking.summary.run_notes import LONGEST, next_command
from tests.tracking.test_tracking import CANARY


def note_of(run_id: str) -> str:
    return MlflowClient().get_run(run_id).data.tags["mlflow.note.content"]


def test_a_description_has_rows_scores_samples_and_commands(store: Path) -> None:
    config = load_config("evaluate", ["model=outputs/mine/model", "tracking.log_system_metrics=false"])
    with stage_run("evaluate", config) as run:
        run.flush()
        assert note_of(run.info.run_id).startswith("**evaluate**: still running\n")
        log_rows(run, datasets.Dataset.from_dict({"src_txt": ["春", "秋"]}), "prepared/mine/test.csv", "test")
        run.log_metrics({"test/rouge": 0.5, "test/rouge_low": 0.25, "test/rouge_high": 0.75, "test/floor_bigram": 9})
        run.log_table({"prompt": ["春"], "text": ["春风\n吹"]}, "samples.json")
    note = note_of(run.info.run_id)
    assert note.startswith("**evaluate**: finished\n")
    assert "- model: `outputs/mine/model`" in note
    assert "- test rows: `mine-test` (digest " in note
    assert "| test/rouge | 0.5 | 0.25 – 0.75 |" in note
    assert "floor_bigram" not in note
    assert "> 春 **风 / 吹**" in note
    assert "    python -m pipelines.evaluate model=outputs/mine/model\n" in note
    assert note.endswith("    python -m pipelines.register model=outputs/mine/model")


@pytest.mark.parametrize(
    ("given", "rows"),
    [([], "prepared/sample/quatrains"), (["output_dir=own"], "own/quatrains"), (["source=a b.csv"], "'prepared/a b'")],
)
def test_what_comes_after_prepare_names_its_rows(given: list[str], rows: str) -> None:
    words = next_command("1", "prepare", load_config("prepare", given))
    assert words == ["python", "-m", "pipelines.finetune", "train.init_from=models/poems", words[-1]]
    assert words[-1].strip("'") == f"data.path={rows}".replace("'", "")
    assert shlex.split(words[-1]) == [words[-1].strip("'")]


def test_what_comes_after_judging_is_to_learn_from_it() -> None:
    given = ["source=judged", "model=outputs/mine/model", "judge.rhyme=1"]
    words = next_command("1", "prepare", load_config("prepare", given))
    assert words == [
        "python",
        "-m",
        "pipelines.prefer",
        "train.init_from=outputs/mine/model",
        "data.path=prepared/judged",
    ]


def test_a_training_is_described_by_the_model_that_it_saved(store: Path) -> None:
    config = load_config("finetune", ["train.init_from=models/poems", "tracking.log_system_metrics=false"])
    with stage_run("finetune", config) as run:
        run.log_metrics({"val/loss": 3.25}, 10)
        run.log_metrics({"val/loss": 4.5}, 20)
        run.log_table({"step": [10, 20], "prompt": ["春", "春"], "text": ["春风", "春雨"]}, "samples.json")
        run.log_checkpoints(store / "checkpoints", [10, 20])
        run.log_saved(10)
    note = note_of(run.info.run_id)
    assert "| score | value |\n| --- | --- |\n| val/loss | 3.25 |\n" in note  # no column of intervals, which it hasn't
    assert "Next:" in note
    assert "> 春 **风**" in note
    assert "雨" not in note


def test_a_run_inside_another_names_no_next_command(store: Path) -> None:
    """Of main, which goes on by itself, or of a trial, whose folder is removed unless it is among the best."""
    config = load_config("finetune", ["train.init_from=models/poems", "tracking.log_system_metrics=false"])
    outer = load_config("sweep", ["stage=finetune", "tracking.log_system_metrics=false"])
    with stage_run("sweep", outer), stage_run("finetune", config) as run:
        pass
    note = note_of(run.info.run_id)
    assert "Made by:" in note
    assert "Next:" not in note


def test_a_description_of_a_failure_says_why_and_names_no_next_command(store: Path) -> None:
    config = load_config("evaluate", ["model=m", f"data.path=https://me:{CANARY}@host/x"])
    config.tracking.log_system_metrics = False
    with suppress(RuntimeError), stage_run("evaluate", config) as run:
        run.log_table({"prompt": ["春" * 4000], "text": ["春" * 9000]}, "samples.json")
        raise RuntimeError("no memory")
    note = note_of(run.info.run_id)
    assert note.startswith("**evaluate**: failed: RuntimeError: no memory\n")
    assert "Next:" not in note
    assert CANARY not in note
    assert len(note) <= LONGEST


def test_a_long_command_goes_on_in_further_lines_and_is_the_same_command(store: Path) -> None:
    """MLflow's page doesn't wrap code: the run's parent, rows and tags would stand outside of the window."""
    given = [
        "model=outputs/mine/model",
        "data.prompt_template=问 ：{src_txt}，再问一次",
        "data.max_rows=100",
        "seed=7",
    ]
    given += ["data.columns.text1=src_txt", "data.columns.text2=tgt_txt", "generation.max_new_tokens=99"]
    config = load_config("evaluate", given)
    config.tracking.log_system_metrics = False
    with stage_run("evaluate", config) as run:
        pass
    code = note_of(run.info.run_id).split("Made by:\n\n")[1].split("\n\nNext:")[0]
    lines = code.split("\n")
    assert len(lines) > 2
    assert all(line.startswith("    ") and len(line) <= 4 + 64 for line in lines)
    assert load_config("evaluate", shlex.split(dedent(code).replace("\\\n", " "))[3:]) == load_config("evaluate", given)
