"""Models of a store that isn't on this machine: downloaded once, and anew where the copy is damaged."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer
from modules.tracking.models import downloaded_models
from modules.tracking.models.exported_model import log_model
from modules.tracking.registry import resolve_model
from modules.tracking.stage_run import connect
from tests.helpers.models import save_model


@pytest.fixture
def registered(store: Path, decoder: Decoder, tokenizer: Tokenizer) -> Path:
    """Version 1 of `poet`, which is champion; returns its folder."""
    connect(folder=store)
    experiment = MlflowClient().create_experiment("poets", artifact_location=(store / "artifacts").as_uri())
    folder = save_model(store / "made", decoder, tokenizer, {"run_id": "1abc"})
    with mlflow.start_run(experiment_id=experiment):
        mlflow.register_model(log_model(folder), "poet")
    MlflowClient().set_registered_model_alias("poet", "champion", "1")
    return folder


def names(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "files.json"}


def test_a_store_on_this_machine_is_read_where_it_is(registered: Path, store: Path) -> None:
    assert resolve_model("models:/poet@champion").is_relative_to(store / "artifacts")


def test_another_store_s_model_is_downloaded_once_however_it_is_named(
    registered: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    download = mlflow.artifacts.download_artifacts

    def count(uri: str, dst_path: str | None = None) -> str:
        asked.append(uri)
        return str(download(uri, dst_path=dst_path))

    monkeypatch.setenv("XDG_CACHE_HOME", str(store / "cache"))
    monkeypatch.setattr(downloaded_models, "is_here", lambda location: False)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", count)
    found = resolve_model("models:/poet@champion")
    assert found.is_relative_to(store / "cache")
    assert names(found) == names(registered)
    assert resolve_model("models:/poet/1") == found
    assert resolve_model(asked[0]) == found
    assert len(asked) == 1
    weights = found / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert names(resolve_model("models:/poet@champion")) == names(registered)
    assert len(asked) == 2
    assert not list(found.glob("download"))


def test_a_cache_that_takes_nothing_costs_a_download(
    registered: Path, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (store / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(store / "file"))
    monkeypatch.setattr(downloaded_models, "is_here", lambda location: False)
    assert names(resolve_model("models:/poet/1")) == names(registered)
    assert "is downloaded for this process alone" in caplog.text


def test_a_version_whose_model_was_deleted_says_what_to_do(registered: Path) -> None:
    source = str(MlflowClient().get_model_version("poet", "1").source)
    MlflowClient().delete_logged_model(source.removeprefix("models:/"))
    with pytest.raises(
        ValueError, match=rf"^models:/poet@champion: .*no longer its model \({source}\).*`mlflow gc`.*register"
    ):
        resolve_model("models:/poet@champion")
