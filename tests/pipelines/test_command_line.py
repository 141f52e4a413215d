"""What a command's exit code and messages say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from modules.system.signals import Stopped
from pipelines.cli.command_line import run_stage, with_positions
from tests.helpers.models import ROOT

STORE = "generate: the tracking store"
LOCKED = "another process has locked the file"
AGAIN = "When that is mended, start the same command again"


def raising(error: BaseException) -> Callable[[Any], None]:
    def stage(config: Any) -> None:
        raise error

    return stage


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("rows.csv:3: src_txt is empty"), 1, "generate: rows.csv:3: src_txt is empty"),
        (KeyboardInterrupt(), 130, "generate: interrupted"),
        (Stopped(signal.SIGTERM), 143, "generate: terminated"),
        (MlflowException("Invalid model name: 'a/b'\nmore"), 1, f"{STORE}: Invalid model name: 'a/b'. {AGAIN}"),
        (OperationalError("x", {}, Exception("database is locked")), 1, f"{STORE}: {LOCKED}. {AGAIN}"),
    ],
)
def test_a_stage_that_does_not_finish_says_so(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_stage("generate", raising(error), [])
    assert stop.value.code == code
    assert capsys.readouterr().err == message + "\n"


def test_a_wrong_key_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_stage("generate", raising(AssertionError("it ran")), ["modle=x"])
    assert stop.value.code == 2
    assert "did you mean model?" in capsys.readouterr().err


def test_our_own_faults_show_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_stage("generate", raising(ZeroDivisionError()), [])


def test_help_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run_stage("generate", raising(AssertionError("it ran")), ["--help"])
    assert "models/poems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["白日依山尽，"], ["prompt=白日依山尽，"]),
        (["一=二", "model=m"], ["prompt=一=二", "model=m"]),
        (["--model", "m", "春"], ["--model", "m", "prompt=春"]),
        (["--prompt=a b"], ["--prompt=a b"]),
    ],
)
def test_the_prompt_needs_no_key(arguments: list[str], expected: list[str]) -> None:
    assert with_positions(arguments, "prompt") == expected


def test_lightning_is_quiet_though_imported_later() -> None:
    program = (
        "from pipelines.cli.command_line import quieten_libraries; quieten_libraries()\n"
        "import pytorch_lightning as pl; pl.Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_needs_no_heavy_library() -> None:
    """A fifth of a second instead of six."""
    program = (
        "import sys\nimport pipelines.generate\nfrom pipelines.cli.help import help_text\nhelp_text('generate')\n"
        "print(sorted({'torch', 'mlflow', 'datasets', 'pytorch_lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_names_that_other_code_relies_on_stay() -> None:
    from modules.checkpoint import load_model
    from modules.tokenizer import load_tokenizer
    from pipelines import pipeline

    tokenizer = load_tokenizer(ROOT / "models" / "poems")
    ids = torch.tensor([tokenizer.encode("白日依山尽，")])
    logits = load_model(ROOT / "models" / "poems")(ids)
    assert logits.shape == (*ids.shape, tokenizer.vocab_size)
    assert pipeline(model=ROOT / "models" / "poems")("白日依山尽，", max_new_tokens=2)["text"].startswith(
        "白日依山尽，"
    )


def test_a_warning_about_a_key_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data.prompt_template: '{src_txt}\\n'\ndata.path: nowhere\n", encoding="utf-8")
    command = [sys.executable, "-m", "pipelines.evaluate", f"config={tmp_path / 'mine.yaml'}", "model=nowhere"]
    done = subprocess.run(
        [*command, f"tracking.tracking_uri=sqlite:///{tmp_path / 'm.db'}"], capture_output=True, text=True, check=False,
        env={**os.environ, "RANK": "", "LOCAL_RANK": "", "WORLD_SIZE": ""}
    )  # fmt: skip
    assert done.stderr.count("holds a backslash and a letter") == 1
