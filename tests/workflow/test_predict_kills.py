"""predict as a process of its own: killed with -9 wherever it hurts, stopped, refused; and the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from modules.config.loader import load_config
from modules.inference.prediction.journal import Journal
from modules.tokenizer.tokenizer import Tokenizer
from pipelines.predict import predict
from tests.helpers.models import ROOT, make_config, make_decoder, save_model
from tests.tracking.test_tracking import all_runs

COMMAND = [
    "model=model", "source=rows.jsonl", "target=out.jsonl", "max_new_tokens=4", "max_batch_tokens=40",
    "tracking.log_system_metrics=false",
]  # fmt: skip

KILLER = """
import os, signal, sys
import modules.inference.prediction.journal as journal
import pipelines.predict as stage
from pipelines.cli.command_line import run_stage

PLACES = {
    "after a batch": (journal, "write_all"), "within a line": (journal, "write_all"),
    "before the target is noted": (journal, "sha256_of"), "before it is in its place": (journal.Path, "replace"),
    "after all is written": (stage, "log_written"),
}
place, number, signal_number, arguments = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
owner, name = PLACES[place]
original, calls = getattr(owner, name), []

def last(*given):
    calls.append(given)
    if name == "replace" and str(given[1]) != "out.jsonl" or len(calls) < number:
        return original(*given)
    if name == "write_all":
        given[0].write(given[1][: -9 if place == "within a line" else None])
    os.kill(os.getpid(), signal_number)

setattr(owner, name, last)
run_stage("predict", stage.predict, arguments)
"""


@pytest.fixture
def rows(store: Path, tokenizer: Tokenizer) -> Path:
    save_model(store / "model", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})
    texts = ["山" * (1 + number % 7) for number in range(30)]
    lines = [json.dumps({"src_txt": text, "n": number}) for number, text in enumerate(texts)]
    (store / "rows.jsonl").write_text("\n".join(lines))
    return store / "rows.jsonl"


def start(place: str, number: int, signal_number: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLER, place, str(number), str(signal_number), *COMMAND]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("after a batch", 3),
        ("within a line", 3),
        ("before the target is noted", 1),
        ("before it is in its place", 1),
        ("after all is written", 1),
    ],
)
def test_the_same_command_goes_on_after_a_kill_and_the_file_is_the_same(
    rows: Path, store: Path, place: str, number: int
) -> None:
    done = start(place, number, signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL, done.stderr
    journal = Journal(Path("out.jsonl"))
    assert journal.answers.stat().st_size
    answered = len(list(journal.lines()))
    assert 0 < answered < 30 if number > 1 else answered == 30
    assert Path("out.jsonl").exists() == (place == "after all is written")
    found = predict(load_config("predict", COMMAND))
    fresh = predict(load_config("predict", [*COMMAND, "target=fresh.jsonl"]))
    assert Path("out.jsonl").read_bytes() == Path("fresh.jsonl").read_bytes()
    assert (found.written.rows, found.written.errors) == (30, 0)
    assert {run.info.run_id for run in all_runs()} == {found.run_id, fresh.run_id}
    assert MlflowClient().get_run(found.run_id).info.status == "FINISHED"
    assert not list(store.glob(".out*"))


def test_sigterm_ends_it_in_one_line_and_what_is_answered_stays(rows: Path, store: Path) -> None:
    done = start("after a batch", 2, signal.SIGTERM)
    assert done.returncode == 128 + signal.SIGTERM
    said = "predict: stopped; what is answered stays, and the same command goes on with out.jsonl"
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [run.info.status for run in all_runs()] == ["KILLED"]
    assert list(Journal(Path("out.jsonl")).lines())
    predict(load_config("predict", COMMAND))
    assert len(Path("out.jsonl").read_text().splitlines()) == 30
