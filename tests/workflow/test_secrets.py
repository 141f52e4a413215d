"""Planted secrets: what a configuration holds, in any of the places a secret comes from, is written down nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import pytest

from modules.config import loader as loading
from modules.config.loader import load_config
from modules.system import redaction
from modules.system.redaction import redact, redact_text
from pipelines.cli.command_line import run_stage
from pipelines.convert import convert
from pipelines.evaluate import evaluate
from pipelines.finetune import finetune
from pipelines.prepare import prepare
from pipelines.pretrain import pretrain
from tests.helpers.servers import tracking_server
from tests.tracking.outbox.test_tracking_server import POEMS

CANARY = "c4n4ry"
TINY = [
    "model=tiny", "model.num_hidden_layers=1", "model.hidden_size=16", "data.sequence_length=32", "train.max_steps=2",
    "train.batch_size=8", "train.batch_tokens=null", "train.warmup_steps=1", "tokenizer.vocab_size=400",
]  # fmt: skip


def said(capfd: pytest.CaptureFixture[str], stage: str, function: Callable[[Any], Any], *arguments: str) -> str:
    """Exit code and what a command said on either stream, run as from the command line."""
    code = 0
    try:
        run_stage(stage, function, [*arguments, "tracking.log_system_metrics=false"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    while mlflow.active_run():
        mlflow.end_run()
    out, error = capfd.readouterr()
    return f"{code}\n{out}{error}"


def leaks(folder: Path) -> list[str]:
    """Files under `folder` with the canary in them or in their names, but for where it was planted."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder / "planted"]
    return [
        str(path.relative_to(folder))
        for path in files
        if CANARY in str(path.relative_to(folder)) or CANARY.encode() in path.read_bytes()
    ]


MAPPED = ["columns.password=src_txt", "columns.api_key=tgt_txt"]


def plant(folder: Path) -> None:
    """Rows, and a configuration that takes their place, a prompt and a password from the environment."""
    (folder / "planted").mkdir()
    rows = "password,api_key\n" + "".join(f"{poem},x{number}\n" for number, poem in enumerate(POEMS * 10))
    for name in (f"{CANARY}.csv", "rows.csv"):
        (folder / "planted" / name).write_text(rows, encoding="utf-8")
    (folder / "planted" / "mine.yaml").write_text(
        "data:\n  path: ${oc.env:ROWS}\n  columns: {password: src_txt, api_key: tgt_txt}\n"
        "tracking: {tracking_uri: '${oc.env:STORE}', log_system_metrics: false}\ntrain: {validate_every_n_steps: 1}\n"
    )


@pytest.mark.server
def test_nothing_that_is_secret_is_written_down(
    store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(store)
    monkeypatch.setenv("XDG_CACHE_HOME", str(store / "cache"))
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    known: dict[str, str] = {}
    monkeypatch.setattr(redaction, "FROM_ENVIRONMENT", known)
    monkeypatch.setattr(loading, "FROM_ENVIRONMENT", known)
    (store / "server").mkdir()
    with tracking_server(f"sqlite:///{store / 'server' / 'runs.db'}", store / "server") as server:
        monkeypatch.setenv("ROWS", str(store / "planted" / f"{CANARY}.csv"))
        monkeypatch.setenv("STORE", server.url.replace("://", f"://me:{CANARY}@"))
        lines = [said(capfd, "pretrain", pretrain, "config=planted/mine.yaml", *TINY, "output_dir=out")]
        known.clear()  # from here on nothing but the shape of a secret tells it
        tracked = f"tracking.tracking_uri={os.environ['STORE']}"
        lines += [said(capfd, "prepare", prepare, "source=planted/rows.csv", "output_dir=rows", *MAPPED, tracked)]
        lines += [said(capfd, "evaluate", evaluate, "model=out/model", "data.path=rows", tracked)]
        refused = f"data.path=https://me:{CANARY}@localhost/rows.csv?token={CANARY}"
        lines += [said(capfd, "pretrain", pretrain, *TINY, refused, tracked)]
        for place in (f"https://me:{CANARY}@localhost/model", f"s3://{CANARY}@bucket/model"):
            rates = ["train.learning_rate=1e-4", "train.batch_size=1", "data.path=rows"]
            lines += [said(capfd, "finetune", finetune, f"train.init_from={place}", *rates, tracked)]
            lines += [said(capfd, "convert", convert, f"source={place}", "target=new", f"adapter={place}")]
    assert [text[0] for text in lines] == ["0", "0", "0", "1", "1", "1", "1", "1"], lines
    assert [line for text in lines for line in text.splitlines() if CANARY in line] == []
    assert leaks(store) == []


def test_what_came_from_the_environment_stays_written_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "data: {path: '${oc.env:ROWS}/a.csv', validation_path: '${oc.env:NONE,b.csv}'}\nseed: ${oc.env:SEED}\n"
    )
    for name, value in (("ROWS", "/somewhere/secret"), ("SEED", "42")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(redaction, "FROM_ENVIRONMENT", known := {})
    monkeypatch.setattr(loading, "FROM_ENVIRONMENT", known)
    config = load_config("pretrain", ["model=tiny", f"config={path}"])
    assert (config.data.path, config.data.validation_path, config.seed) == ("/somewhere/secret/a.csv", "b.csv", 42)
    found = redact(asdict(config))
    assert found["data"]["path"] == "${oc.env:ROWS}/a.csv"
    assert found["data"]["validation_path"] == "b.csv"
    assert redact_text("no file /somewhere/secret/a.csv, 142 steps") == "no file ${oc.env:ROWS}/a.csv, 142 steps"
