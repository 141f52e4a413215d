"""What is known before the first step is said before it; and what a training says of itself at its end."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import datasets
import mlflow
import pytest
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment

from modules.config.generation import GenerationConfig
from modules.config.loader import load_config
from modules.inference.text_generator import require_room
from modules.system.signals import is_worker
from modules.tokenizer.tokenizer import Tokenizer
from modules.training.callbacks import ProgressLine
from modules.training.checkpoints.run_manifest import RunManifest, manifest_differences
from modules.training.setup import choose_tokenizers
from modules.training.strategies import job_environment
from pipelines.cli.launch import require_processes
from pipelines.cli.summaries import show_trained
from pipelines.evaluate import evaluate
from pipelines.finetune import finetune
from pipelines.pretrain import pretrain
from tests.helpers.models import make_config, make_decoder, save_model
from tests.pipelines.test_evaluate import write_rows

POEMS = {"src_txt": ["白日依山尽，黄河入海流。", "春眠不觉晓，处处闻啼鸟。"] * 3}
QUIET = ["tracking.log_system_metrics=false"]


@pytest.fixture
def model(store: Path, tokenizer: Tokenizer) -> Path:
    return save_model(store / "model", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})


def test_a_prompt_leaves_room_for_a_token(tokenizer: Tokenizer) -> None:
    prompt = "春" * 7  # and a start token
    require_room("prompts", ["春", prompt], tokenizer, 9, GenerationConfig())
    with pytest.raises(
        ValueError, match=f"^prompts holds '{prompt}', 8 tokens, and the model has 8 positions .*shorten"
    ):
        require_room("prompts", ["春", prompt], tokenizer, 8, GenerationConfig())


def test_sample_prompts_that_do_not_fit_are_refused_before_training(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.train.fit", Mock(side_effect=AssertionError("it trains")))
    arguments = [f"train.init_from={model}", "data.sequence_length=32", f"train.sample_prompts=[{'春' * 99}]", *QUIET]
    with pytest.raises(ValueError, match=r"^train\.sample_prompts holds .*the model has 96 positions"):
        finetune(load_config("finetune", arguments), rows=POEMS)


def test_prompts_that_do_not_fit_are_refused_before_scoring(
    model: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.evaluate.Task.of_model", Mock(side_effect=AssertionError("it scores")))
    rows = write_rows(store / "rows", test=[{"src_txt": "床前明月光"}])
    arguments = [f"model={model}", f"data.test_path={rows / 'test.jsonl'}", "data.path=null", f"prompts=[{'春' * 99}]"]
    with pytest.raises(ValueError, match=r"^prompts holds .*the model has 96 positions"):
        evaluate(load_config("evaluate", [*arguments, *QUIET]))


@pytest.mark.parametrize(
    ("stage", "arguments"),
    [
        ("finetune", ["train.init_from=nowhere"]),
        ("pretrain", ["tokenizer.path=nowhere"]),
        ("evaluate", ["model=nowhere"]),
        ("evaluate", ["model=models/poems", "baseline=nowhere"]),
    ],
)
def test_a_folder_that_is_not_there_opens_no_run(stage: str, arguments: list[str], store: Path) -> None:
    functions: dict[str, Any] = {"finetune": finetune, "pretrain": pretrain, "evaluate": evaluate}
    with pytest.raises(ValueError, match=rf"^{arguments[-1]}: no such model folder"):
        functions[stage](load_config(stage, [*arguments, *QUIET]))
    assert not mlflow.search_runs(search_all_experiments=True, output_format="list")


def test_a_template_without_targets_is_told(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, model: Path
) -> None:
    config = load_config("finetune", ["train.init_from=m", r"data.prompt_template={src_txt}\n"])
    plain = datasets.Dataset.from_dict({"src_txt": ["春"]})
    pairs = plain.add_column("tgt_txt", ["秋"])
    with caplog.at_level(logging.WARNING):
        assert choose_tokenizers(config, model, {"train": pairs})[""].prompt_template == "{src_txt}\n"
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        assert choose_tokenizers(config, model, {"train": plain})[""].prompt_template is None
    assert "data.prompt_template has no effect" in caplog.messages[0]


# --- SLURM ---


@pytest.mark.parametrize(
    ("job", "environment", "worker"),
    [
        ({}, type(None), False),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, LightningEnvironment, False),  # sbatch, without srun
        ({"SLURM_NTASKS": "4"}, LightningEnvironment, False),  # salloc
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1"}, SLURMEnvironment, True),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "LOCAL_RANK": "0"}, type(None), True),  # started by ourselves there
    ],
)
def test_a_job_script_is_one_process(
    job: dict[str, str], environment: type, worker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "LOCAL_RANK", "SLURM_JOB_NAME", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    if worker and "LOCAL_RANK" not in job:
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", job["SLURM_NTASKS"])
    assert is_worker() == worker
    assert type(job_environment()) is environment


@pytest.mark.parametrize(
    ("started", "remedy"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "Start it with srun --nodes=1 --ntasks-per-node=2 python"),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "Start it with torchrun --nnodes=1 --nproc-per-node=2 -m"),
    ],
)
def test_another_number_of_processes_gets_its_launchers_command(
    started: dict[str, str], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=remedy):
        require_processes(load_config("pretrain", ["trainer.devices=2"]).trainer)


# --- what it says of itself ---


def test_the_bar_has_the_stages_name(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = ProgressLine("finetune")
    shown = Mock()
    monkeypatch.setattr(
        TQDMProgressBar, "on_train_epoch_start", lambda self, *_: self.train_progress_bar.set_description("Epoch 0")
    )
    bar._train_progress_bar = shown
    bar.on_train_epoch_start(SimpleNamespace(current_epoch=0), None)  # type: ignore[arg-type]
    assert shown.set_description.call_args.args == ("finetune",)


def test_the_end_names_run_folder_and_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "my model"
    config = load_config("finetune", ["train.init_from=m", f"data.path={tmp_path}"])
    show_trained("finetune: done", "abc", model, {"val/loss": 1.5}, config, True)
    said = " ".join(capsys.readouterr().out.split())
    assert f"val/loss 1.5 run abc model folder {model} next python -m pipelines.generate 'model={model}'" in said
    assert f"scores python -m pipelines.evaluate 'model={model}' a version" in said  # run.yaml names the rows
    assert f"a version python -m pipelines.register 'model={model}' model_name=NAME a server" in said
    assert f"python -m pipelines.serve 'model={model}'" in said
    config.data.path, config.tracking.tracking_uri = None, "sqlite:////a b.db"
    show_trained("finetune: done", "abc", model, None, config, True)
    said = " ".join(capsys.readouterr().out.split())
    assert f"'model={model}' 'tracking.tracking_uri=sqlite:////a b.db' data.test_path=FILE a version" in said
    show_trained("finetune: done", "abc", model, None, config, False)
    assert "next" not in capsys.readouterr().out


def test_a_template_that_differs_is_shown_as_it_is_typed() -> None:
    """A run of an earlier version has a backslash and an n where the same command now gives a line end."""

    def manifest(template: str, **tokenizer: int) -> RunManifest:
        config = {"data": {"prompt_template": template}, "tokenizer": tokenizer, "train": {"init_from": "m"}}
        return RunManifest("finetune", "abc", config, {}, "t", None)

    found = manifest_differences(
        manifest(r"问：{src_txt}\n", vocab_size=300), manifest("问：{src_txt}\n", vocab_size=999)
    )
    assert found == {"data.prompt_template": r"data.prompt_template was 问：{src_txt}\\n, and is 问：{src_txt}\n"}
    typed = [r"data.prompt_template=问：{src_txt}\\n", "train.init_from=m"]
    assert load_config("finetune", typed).data.prompt_template == r"问：{src_txt}\n"
