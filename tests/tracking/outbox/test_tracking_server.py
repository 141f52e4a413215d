"""A real stage against real tracking servers on 127.0.0.1: one keeps its runs in SQLite, one in PostgreSQL."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import sqlalchemy
from mlflow import MlflowClient

from modules.checkpoint.loading import verify_model
from modules.config.base import StageConfig, TrackingConfig
from modules.config.commands import SyncConfig
from modules.config.loader import load_config
from modules.system.checksums import sha256_of
from modules.tracking.lightning_logger import RunLogger
from modules.tracking.outbox import sender
from modules.tracking.registry import complete_version, register_version, resolve_model, version_with_alias
from modules.tracking.stage_run import stage_run
from pipelines.pretrain import pretrain
from pipelines.sync import sync
from pipelines.train import TrainResult
from tests.helpers.servers import PASSWORD, TrackingServer, postgresql_binaries, postgresql_cluster, tracking_server

pytestmark = pytest.mark.server

POEMS = ["白日依山尽，黄河入海流。", "春眠不觉晓，处处闻啼鸟。", "床前明月光，疑是地上霜。", "千山鸟飞绝，万径人踪灭。"]


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with postgresql_cluster() as uri:
        yield uri


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    folder = tmp_path_factory.mktemp(request.param)
    sqlite = request.param == "sqlite"
    store_uri = f"sqlite:///{folder / 'mlflow.db'}" if sqlite else request.getfixturevalue("postgresql")
    with tracking_server(store_uri, folder) as started:
        yield started


@pytest.fixture(scope="module")
def server(running: TrackingServer) -> str:
    return running.url


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The client's own current folder and environment."""
    folder = tmp_path_factory.mktemp("client")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
            patch.setenv(name, "")  # so that it is put back afterwards, whatever MLflow writes there
            patch.delenv(name)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        patch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
        patch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
        yield folder


@pytest.fixture(scope="module")
def trained(server: str, place: Path) -> Iterator[TrainResult]:
    arguments = {
        "model.hidden_size": "32",
        "model.num_hidden_layers": "1",
        "train.max_steps": "3",
        "train.max_epochs": "null",
        "train.batch_size": "4",
        "train.validate_every_n_steps": "2",
        "train.sample_prompts": "[春, 白日]",
        "tokenizer.min_frequency": "1",
        "generation.max_new_tokens": "4",
        "data.validation_fraction": "0.2",
        "trainer.accelerator": "cpu",
        "trainer.progress_bar": "false",
        "tracking.tracking_uri": server,
        "tracking.log_system_metrics": "false",
    }
    config = load_config("pretrain", [f"{key}={value}" for key, value in arguments.items()])
    result = pretrain(config, {"src_txt": [poem * count for poem in POEMS for count in (1, 2, 3, 4)]})
    mlflow.set_tracking_uri(server)  # as who looks at it afterwards does
    mlflow.set_experiment("moyun")
    yield result
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def test_a_stage_leaves_all_of_it_on_the_server(trained: TrainResult, server: str, place: Path) -> None:
    client = MlflowClient(server)
    run = client.get_run(trained.run_id)
    assert (run.info.status, run.info.run_name[:9], run.data.tags["stage"]) == ("FINISHED", "pretrain ", "pretrain")
    assert client.get_experiment(run.info.experiment_id).name == "moyun"
    environment = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/environment.json"))
    assert environment["versions"]["mlflow"] == mlflow.__version__
    assert run.data.params["cfg.train.max_steps"] == "3"
    assert run.data.params["cfg.train.sample_prompts"] == "['春', '白日']"
    losses = client.get_metric_history(trained.run_id, "train/loss")
    assert [metric.step for metric in losses] == [1, 2, 3]
    assert all(metric.value > 0 for metric in losses)
    validations = client.get_metric_history(trained.run_id, "val/loss")
    assert [metric.step for metric in validations] == [2, 3]
    assert trained.metrics is not None
    assert trained.metrics["val/loss"] in [metric.value for metric in validations]
    inputs = {(tag.value, entry.dataset.name) for entry in run.inputs.dataset_inputs for tag in entry.tags}
    assert {context for context, _ in inputs} == {"train", "validation"}
    assert {"config.yaml", "loss_curve.png", "samples.json"} <= {
        file.path for file in client.list_artifacts(trained.run_id)
    }
    picture = Path(client.download_artifacts(trained.run_id, "loss_curve.png", str(place)))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (place / "mlflow.db").exists()  # nothing went to the store that is used when none is named
    assert not (place / "mlruns").exists()


def test_the_samples_are_a_table(trained: TrainResult) -> None:
    table = mlflow.load_table("samples.json", run_ids=[trained.run_id])
    assert set(table["prompt"]) == {"春", "白日"}
    assert len(table) == 2 * len(set(table["step"]))
    assert all(text for text in table["text"])


def test_the_model_comes_back_from_the_server_and_can_be_champion(trained: TrainResult, server: str) -> None:
    assert trained.model is not None
    assert trained.model_uri is not None
    run = MlflowClient(server).get_run(trained.run_id)
    steps = {f"models:/{output.model_id}": output.step for output in run.outputs.model_outputs}
    assert steps[trained.model_uri] == 3
    assert set(steps.values()) == {3}
    assert version_with_alias("small", "champion") is None
    number = register_version("small", str(trained.model), trained.model, trained.run_id, {"test_rows": "7"})
    assert version_with_alias("small", "champion") is None
    complete_version("small", number, "champion")
    version = version_with_alias("small", "champion")
    assert version is not None
    assert (str(version.version), version.tags["test_rows"]) == (number, "7")
    assert (version.source, version.run_id) == (trained.model_uri, trained.run_id)
    for uri in (trained.model_uri, "models:/small@champion", f"models:/small/{number}"):
        folder = resolve_model(uri)
        assert sha256_of(folder / "model.safetensors") == sha256_of(trained.model / "model.safetensors")
    assert verify_model(folder) <= 1e-5
    with pytest.raises(ValueError, match=rf"models:/nobody@champion: .*tracking store: {server}"):
        resolve_model("models:/nobody@champion")


def test_a_database_named_with_a_password_never_holds_it(
    postgresql: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client writes to PostgreSQL itself, as `tracking.tracking_uri=postgresql+psycopg2://…` has it do."""
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    arguments = [f"tracking.tracking_uri={postgresql}", "tracking.experiment_name=direct"]
    config = load_config("prepare", [*arguments, "tracking.log_system_metrics=false"])
    with stage_run("prepare", config) as run:
        pass
    stored = MlflowClient(postgresql).get_run(run.info.run_id)
    assert "cfg.tracking.tracking_uri" not in stored.data.params
    command = [postgresql_binaries() / "pg_dump", postgresql.replace("+psycopg2", "")]
    dump = subprocess.run(command, capture_output=True, check=True).stdout
    assert run.info.run_id.encode() in dump
    assert PASSWORD.encode() not in dump
    files = [path for path in (place / "mlruns").rglob("*") if path.is_file()]
    assert "config.yaml" in {path.name for path in files}
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []


def test_a_database_that_takes_no_writes_for_a_while_loses_nothing(
    postgresql: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a failover to a replica, behind a server that answers all along."""
    monkeypatch.setattr(sender, "INTERVAL", 0.02)
    with tracking_server(postgresql, tmp_path) as server:
        tracking = TrackingConfig(server.url, "read-only", log_system_metrics=False)
        with stage_run("pretrain", StageConfig(tracking=tracking)) as run:
            logger = RunLogger(run)
            logger.log_metrics({"train/loss": 1.0}, 1)
            assert run.flush()
            read_only(postgresql, True)
            for step in range(2, 52):
                logger.log_metrics({"train/loss": 1 / step}, step)
            while run.sender.failures < 2:
                time.sleep(0.01)
            read_only(postgresql, False)
        assert (run.spool.refused, run.spool.pending) == (0, 0)
        stored = MlflowClient(server.url).get_metric_history(run.info.run_id, "train/loss")
        assert [(metric.step, metric.value) for metric in stored] == logger.history["train/loss"]


def read_only(postgresql: str, on: bool) -> None:
    """For connections that are made from now on; those that stand are ended."""
    engine = sqlalchemy.create_engine(postgresql, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SET default_transaction_read_only = off"))
        setting = f"SET default_transaction_read_only = {'on' if on else 'off'}"
        connection.execute(sqlalchemy.text(f"ALTER DATABASE postgres {setting}"))
        others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        connection.execute(sqlalchemy.text(f"SELECT pg_terminate_backend(pid) {others}"))


def test_a_server_that_is_killed_again_and_again_has_everything_in_the_end(
    running: TrackingServer, trained: TrainResult, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of sending, by a seed; the last time it comes back when the run has ended."""
    monkeypatch.setattr(sender, "INTERVAL", 0.02)
    noise = random.Random(7)
    tracking = TrackingConfig(running.url, "killed", log_system_metrics=False, flush_timeout=1)
    assert trained.model is not None
    with stage_run("pretrain", StageConfig(tracking=tracking)) as run:
        logger = RunLogger(run)
        log_for(noise.uniform(0.3, 0.6), logger, noise)
        for last in (False, True):
            running.kill()
            log_for(noise.uniform(0.3, 0.6), logger, noise)
            if not last:
                running.start()
                log_for(noise.uniform(0.3, 0.6), logger, noise)
        run.log_text("春", "a/b.txt")
        assert run.log_model(trained.model) is None
    assert run.spool.pending > 0
    running.start()
    (sent,) = sync(SyncConfig(tracking))
    assert (sent.run_id, sent.left) == (run.info.run_id, 0)
    client = MlflowClient(running.url)
    stored = client.get_run(run.info.run_id)
    assert (stored.info.status, stored.data.tags["end"]) == ("FINISHED", "finished")
    for name in ("train/loss", "lr"):
        history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert history == logger.history[name]
    (output,) = stored.outputs.model_outputs
    assert sha256_of(resolve_model(f"models:/{output.model_id}") / "model.safetensors") == sha256_of(
        trained.model / "model.safetensors"
    )
    assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/a/b.txt") == "春"
    assert sync(SyncConfig(tracking)) == []


def log_for(seconds: float, logger: RunLogger, noise: random.Random) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        logger.log_metrics({"train/loss": noise.random(), "lr": noise.random()}, len(logger.history.get("lr", ())) + 1)
        time.sleep(0.001)
