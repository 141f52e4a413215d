"""Planted secrets: what a configuration holds, in any of the places a secret comes from, is written down nowhere."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_tracking_server import POEMS, tracking_server

from modules import redaction
from modules.config import load_config, loading, to_dict
from modules.redaction import redact, redact_text

ROOT = Path(__file__).parents[1]
CANARY = "c4n4ry"
TINY = [
    "model=tiny", "model.num_hidden_layers=1", "model.hidden_size=16", "data.sequence_length=32", "train.max_steps=2",
    "train.batch_size=8", "train.batch_tokens=null", "train.warmup_steps=1", "tokenizer.vocab_size=400",
]  # fmt: skip


def run(folder: Path, *arguments: str, **environment: str) -> str:
    """What a command said on either stream."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    kept |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    ended = subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True)
    return f"{ended.returncode}\n{ended.stdout}{ended.stderr}"


def leaks(folder: Path) -> list[str]:
    """Files under `folder` with the canary in them or in their names, but for where it was planted."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder / "planted"]
    return [
        str(path.relative_to(folder))
        for path in files
        if CANARY in str(path.relative_to(folder)) or CANARY.encode() in path.read_bytes()
    ]


def plant(folder: Path) -> None:
    """Rows, and a configuration that takes their place, a prompt and a password from the environment."""
    (folder / "planted").mkdir()
    with (folder / "planted" / f"{CANARY}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["password", "api_key"])
        writer.writerows([poem, ""] for poem in POEMS * 10)
    (folder / "planted" / "mine.yaml").write_text(
        "data:\n  path: ${oc.env:ROWS}\n  columns: {password: src_txt}\n"
        "tracking: {tracking_uri: '${oc.env:STORE}', log_system_metrics: false}\ntrain: {validate_every_n_steps: 1}\n"
    )


@pytest.mark.server
def test_nothing_that_is_secret_is_written_down(tmp_path: Path) -> None:
    plant(tmp_path)
    (tmp_path / "server").mkdir()
    with tracking_server(f"sqlite:///{tmp_path / 'server' / 'runs.db'}", tmp_path / "server") as url:
        secrets = {
            "ROWS": str(tmp_path / "planted" / f"{CANARY}.csv"),
            "STORE": url.replace("://", f"://me:{CANARY}@"),
        }
        prepare = [f"source={secrets['ROWS']}", "columns.password=src_txt", "output_dir=rows"]
        said = [run(tmp_path, "pipelines.pretrain", "config=planted/mine.yaml", *TINY, "output_dir=out", **secrets)]
        said += [run(tmp_path, "pipelines.prepare", *prepare, f"tracking.tracking_uri={secrets['STORE']}")]
        evaluate = ["model=out/model", "data.path=rows", f"tracking.tracking_uri={secrets['STORE']}"]
        said += [run(tmp_path, "pipelines.evaluate", *evaluate)]
        refused = f"data.path=https://me:{CANARY}@localhost/rows.csv?token={CANARY}"
        said += [run(tmp_path, "pipelines.pretrain", *TINY, refused, "tracking.log_system_metrics=false")]
        refused = f"train.init_from=https://me:{CANARY}@localhost/model"
        said += [run(tmp_path, "pipelines.finetune", refused, "data.path=rows", "model=null")]
    assert [text[0] for text in said] == ["0", "0", "0", "1", "1"], said
    assert [line for text in said for line in text.splitlines() if CANARY in line] == []
    assert leaks(tmp_path) == []


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
    found = redact(to_dict(config))
    assert found["data"]["path"] == "${oc.env:ROWS}/a.csv"
    assert found["data"]["validation_path"] == "b.csv"
    assert redact_text("no file /somewhere/secret/a.csv, 142 steps") == "no file ${oc.env:ROWS}/a.csv, 142 steps"
