"""Commands whose output nobody reads to its end, or can show, and files that can't be what a key says."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.command_line import run_stage, with_positions
from tests.helpers.models import ROOT


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE, **options
    )


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("stage", ["generate", "main"])
def test_help_may_be_cut_short(stage: str) -> None:
    done = run(f"pipelines.{stage}", "--help", stdout=closed_pipe())
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_stage_ends_its_work_without_a_reader(tmp_path: Path) -> None:
    arguments = ["source=models/poems", f"target={tmp_path / 'copy'}", "dtype=bfloat16"]
    done = run("pipelines.convert", *arguments, stdout=closed_pipe())
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "copy" / "model.safetensors").is_file()


def test_without_any_output_at_all() -> None:
    program = (
        "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, '-m', 'pipelines.generate', '春'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "latin-1"])
def test_an_encoding_without_all_characters(encoding: str) -> None:
    done = run("pipelines.finetune", "--help", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert "data.path" in done.stdout.decode(encoding)
    done = run(
        "pipelines.generate", "白", "max_new_tokens=1", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": encoding}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding).startswith("白" if encoding == "gbk" else "?")


def test_arguments_that_are_no_text() -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    for argument, environment in (("春".encode(), plain), ("春".encode("gbk"), {"PYTHONUTF8": "1"})):
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.generate", argument],
            cwd=ROOT, env=os.environ | environment, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 2
        assert b"isn't text in this terminal's encoding" in done.stderr
        assert b"Traceback" not in done.stderr


def test_a_full_disk_under_the_help_is_said_in_a_line() -> None:
    with open("/dev/full", "wb") as full:
        done = run("pipelines.generate", "--help", stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith(b"generate: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (
            errno.ENAMETOOLONG,
            "the name is too long for a file or folder (255 bytes, some 80 Chinese characters); give a",
        ),
        (errno.ELOOP, "its links lead in a circle; give another path, then start the same command again"),
        (errno.ENOTDIR, "a part of it is a file and no folder; give another path"),
        (errno.EISDIR, "Is a directory; give another path"),
        (errno.EACCES, "Permission denied; give it room or rights"),
        (errno.ENOSPC, "No space left on device; give it room or rights"),
    ],
)
def test_a_path_that_fails_later_is_named_with_its_key(
    number: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(config: Any) -> None:
        raise OSError(number, os.strerror(number), f"{config.target}/model.yaml")

    with pytest.raises(SystemExit):
        run_stage("convert", stage, ["source=a", f"target={tmp_path}/new"])
    assert capsys.readouterr().err.startswith(f"convert: target: {tmp_path}/new/model.yaml: {says}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["e=mc2，"], ["prompt=e=mc2，"]),
        (["x=1", "seed=2"], ["prompt=x=1", "seed=2"]),
        (["seed=1"], ["seed=1"]),
        (["generation.seed=1"], ["generation.seed=1"]),
        (["temprature=1"], ["temprature=1"]),  # a misspelt key is no prompt
        (["modle=m"], ["modle=m"]),
        (["train.seed=1"], ["train.seed=1"]),
        (["config=c.yaml", "a=b", "c=d"], ["config=c.yaml", "prompt=a=b", "c=d"]),
        (["--x=1"], ["--x=1"]),
        (["prompt=seed=1"], ["prompt=seed=1"]),
    ],
)
def test_a_prompt_may_look_like_a_key(arguments: list[str], expected: list[str]) -> None:
    assert with_positions(arguments, "prompt", stage="generate") == expected
