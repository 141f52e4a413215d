"""A registered model behind HTTP: found by its alias, and followed when that moves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import mlflow
import psutil
import pytest
from mlflow import MlflowClient

from modules.config.base import TrackingConfig
from modules.config.loader import load_config
from modules.inference.server.lifecycle import Lifecycle
from modules.inference.server.model_process.messages import Found
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer
from modules.tracking.models.exported_model import log_model
from modules.tracking.stage_run import connect
from pipelines.cli.serving import GivenModel
from pipelines.serve import serve
from tests.helpers.models import ROOT, make_config, make_decoder, save_model
from tests.helpers.server_tools import until


@pytest.fixture
def registered(store: Path, tokenizer: Tokenizer) -> MlflowClient:
    """Two versions of `poet`; champion is the first."""
    connect(folder=store)
    client = MlflowClient()
    experiment = client.create_experiment("poets", artifact_location=(store / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment):
        for number in (1, 2):
            decoder = make_decoder(make_config(tokenizer.vocab_size), seed=number)
            folder = save_model(store / f"made-{number}", decoder, tokenizer, {"run_id": f"{number}abc"})
            mlflow.register_model(log_model(folder), "poet")
    client.set_registered_model_alias("poet", "champion", "1")
    return client


@pytest.mark.server
def test_the_command_follows_champion(registered: MlflowClient, store: Path) -> None:
    command = [sys.executable, "-m", "pipelines.serve", "model=models:/poet@champion", "port=0", "follow_seconds=0.3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    log = store / "log"
    with log.open("w") as errors:
        started = subprocess.Popen(
            command, cwd=store, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert started.stdout
            lines = [started.stdout.readline() for _ in range(2)]
            assert lines[0].startswith("serve: verifying and loading ")
            assert lines[1].startswith(
                "serve: poet (version 1, run 1abc) is ready without an API key: http://127.0.0.1"
            )
            url = address_in_line(lines[1])
            assert httpx.get(f"{url}/v1/models").json()["data"][0]["version"] == "1"
            assert not [entry for entry in psutil.Process(started.pid).memory_maps() if "torch" in entry.path]
            registered.set_registered_model_alias("poet", "champion", "2")
            assert "poet (version 2, run 2abc) is ready" in "".join(started.stdout.readline() for _ in range(2))
            assert httpx.get(f"{url}/card").json()["version"] == "2"
            registered.delete_registered_model_alias("poet", "champion")
            until(lambda: log.read_text())
            assert httpx.get(f"{url}/ready").status_code == 200
            for place in store.glob("artifacts/**/model.safetensors"):  # version 1, and the other
                place.write_bytes(place.read_bytes()[:-1])
            registered.set_registered_model_alias("poet", "champion", "1")
            until(lambda: "version 1 isn't served" in log.read_text())
            assert httpx.get(f"{url}/card").json()["version"] == "2"
            assert not [entry for entry in psutil.Process(started.pid).memory_maps() if "torch" in entry.path]
            started.send_signal(signal.SIGTERM)
            assert started.wait(20) == 0
        finally:
            started.kill()
            started.wait()
    first, second = log.read_text().splitlines()
    assert first == "no newer version can be found: the alias names none; going on with version 2"
    assert second.endswith("going on with version 2")


def address_in_line(line: str) -> str:
    return line[line.index("http://") :].partition("/ in a browser")[0]


def test_a_version_is_the_one_that_its_alias_or_its_number_names(registered: MlflowClient, store: Path) -> None:
    for place, version in (("models:/poet@champion", "1"), ("models:/poet/2", "2"), (str(store / "made-2"), None)):
        source = GivenModel(place, TrackingConfig(), {})
        assert source.newest() == version
        folder = source.find(version)
        number = version or "2"
        assert f"run_id: {number}abc" in (folder / "run.yaml").read_text()


def test_a_store_that_is_not_there_is_not_made(store: Path) -> None:
    (store / "mlflow.db").unlink()
    source = GivenModel("models:/poet@champion", TrackingConfig(), {})
    assert source.newest() is None
    with pytest.raises(ValueError, match=r"models:/poet@champion: there is no tracking store .*make demo"):
        source.find(None)
    assert not (store / "mlflow.db").exists()


def test_that_others_can_reach_it_is_said_once_and_not_at_each_move(
    store: Path,
    decoder: Decoder,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_model(store / "model", decoder, tokenizer, {})

    def run(server: Lifecycle, ready: object, found: Callable[[Found], None]) -> None:
        server.listener.close()
        for _ in range(2):
            found(Found(folder, None))

    monkeypatch.setattr(Lifecycle, "run", run)
    serve(load_config("serve", [f"model={folder}", "host=0.0.0.0", "port=0"]))
    said = capsys.readouterr().out
    assert said.count("others can reach") == 1
    assert said.count("verifying and loading") == 2
