"""MLflow's own commands on a logged model: `mlflow models serve` with JSON and CSV, `mlflow models predict -t csv`.

`mlflow.models.evaluate` is in tests/inference/test_mlflow_input.py, `mlflow models generate-dockerfile` in
tests/inference/test_pyfunc.py.
"""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import mlflow
import pytest

from modules.inference.text_generator import TextGenerator
from modules.tokenizer.tokenizer import Tokenizer
from modules.tracking.models.exported_model import log_model
from tests.helpers.models import make_config, make_decoder, save_model
from tests.helpers.server_tools import until

pytestmark = pytest.mark.server

TEXTS = ["白日依山尽，", '说"春"，\n花', " 夏 "]


@pytest.fixture
def ours(store: Path, tokenizer: Tokenizer) -> TextGenerator:
    return TextGenerator(make_decoder(make_config(tokenizer.vocab_size)), tokenizer)


@pytest.fixture
def folder(store: Path, ours: TextGenerator) -> Path:
    """What MLflow holds of the model."""
    model = save_model(store / "model", ours.decoder, ours.tokenizer, {})
    experiment = mlflow.create_experiment("clients", artifact_location=(store / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment):
        return Path(mlflow.artifacts.download_artifacts(log_model(model)))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["models", "serve", "-m", str(folder), "--env-manager", "local", "-p", str(port), "-h", "127.0.0.1"]
    # It starts the uvicorn that the PATH has.
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    with (folder.parent / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            cwd=folder.parent,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

        def answers() -> bool:
            assert process.poll() is None, (folder.parent / "log").read_text()
            try:
                return httpx.get(f"http://127.0.0.1:{port}/ping", timeout=2).is_success
            except httpx.TransportError:
                return False

        try:
            until(answers, 120)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, 15)
            process.wait(timeout=30)


def as_csv(path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["src_txt"], *([text] for text in TEXTS)])
    return path


def test_models_serve(folder: Path, ours: TextGenerator, tmp_path: Path) -> None:
    parameters = {"max_new_tokens": 8, "temperature": 0.0}
    expected = [{"text": ours(text, **parameters)["text"]} for text in TEXTS]
    with served(folder) as url:
        body = {"inputs": {"src_txt": TEXTS}, "params": parameters}
        assert httpx.post(url, json=body, timeout=60).json()["predictions"] == expected
        content = as_csv(tmp_path / "rows.csv").read_bytes()
        found = httpx.post(url, content=content, headers={"Content-Type": "text/csv"}, timeout=60).json()
        texts = [row["text"] for row in found["predictions"]]
        assert [text[: len(prompt)] for text, prompt in zip(texts, TEXTS, strict=True)] == TEXTS
        wrong = httpx.post(url, json=body | {"params": {"max_tokens": 8}}, timeout=60)
        assert wrong.status_code == 400
        assert "max_tokens" in wrong.json()["message"]


def test_models_predict_of_csv(folder: Path, tmp_path: Path) -> None:
    rows, answers = as_csv(tmp_path / "rows.csv"), tmp_path / "answers.json"
    command = ["models", "predict", "-m", str(folder), "--env-manager", "local", "-t", "csv"]
    subprocess.run(
        [sys.executable, "-m", "mlflow", *command, "-i", str(rows), "-o", str(answers)], check=True, cwd=folder.parent
    )
    found = [row["text"] for row in json.loads(answers.read_text(encoding="utf-8"))["predictions"]]
    assert [text[: len(prompt)] for text, prompt in zip(found, TEXTS, strict=True)] == TEXTS
    assert all(len(text) > len(prompt) for text, prompt in zip(found, TEXTS, strict=True))
