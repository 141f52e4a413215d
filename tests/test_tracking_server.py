"""A real stage against real tracking servers on 127.0.0.1: one keeps its runs in SQLite, one in PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from modules.checkpoint import verify_model
from modules.config import load_config
from modules.registry import move_alias, register_version, version_with_alias
from modules.row_files import sha256_of
from modules.tracking import resolve_model, stage_run
from pipelines.pretrain import pretrain
from pipelines.train import TrainResult

pytestmark = pytest.mark.server

PASSWORD = "c4n4ry"
POEMS = ["白日依山尽，黄河入海流。", "春眠不觉晓，处处闻啼鸟。", "床前明月光，疑是地上霜。", "千山鸟飞绝，万径人踪灭。"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def process(command: list[str], log: Path, stop: signal.Signals, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, whatever happens in it."""
    with log.open("wb") as output:
        started = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
    try:
        yield started
    finally:
        started.send_signal(stop)
        with suppress(subprocess.TimeoutExpired):
            started.wait(20)
        with suppress(ProcessLookupError):  # what is left of its own session, and so nobody else's processes
            os.killpg(started.pid, signal.SIGKILL)
        started.wait(20)


def wait_until(ready: Callable[[], bool], started: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if started.poll() is not None or time.monotonic() > end:
            pytest.fail(f"{started.args!r} isn't ready:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def tracking_server(store_uri: str, folder: Path) -> Iterator[str]:
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store_uri, "--artifacts-destination", str(folder / "artifacts")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment = {**kept, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with process(command, log, signal.SIGTERM, env=environment, cwd=folder) as started:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/health"), started, log)
        yield url


def postgresql_binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("postgres")
    if not found and not on_path:
        pytest.skip("no PostgreSQL server here: install Debian's postgresql, or put `postgres` on the PATH")
    return (found[-1] if found else Path(str(on_path))).parent


def postgresql_user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("running as root, and there is no user postgres for PostgreSQL to run as")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The URI of a cluster of our own. Its folder is short, for the socket's sake, and not below pytest's (root's)."""
    binaries, user = postgresql_binaries(), postgresql_user()
    pytest.importorskip("psycopg2", reason="psycopg2-binary is not installed")
    with tempfile.TemporaryDirectory(prefix="moyun-pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        log = folder / "log"
        if user:
            os.chown(folder, user["user"], user["group"])
        options = {**user, "cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}}
        data, port = folder / "data", free_port()
        initialise = [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run(initialise, check=True, capture_output=True, **options)
        command = [str(binaries / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
        with process([*command, "-c", "fsync=off"], log, signal.SIGINT, **options) as started:  # SIGINT: fast shutdown
            wait_until(lambda: accepts(port) and "ready to accept" in log.read_text(), started, log)
            yield f"postgresql+psycopg2://postgres:{PASSWORD}@127.0.0.1:{port}/postgres"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp(request.param)
    sqlite = request.param == "sqlite"
    store_uri = f"sqlite:///{folder / 'mlflow.db'}" if sqlite else request.getfixturevalue("postgresql")
    with tracking_server(store_uri, folder) as url:
        yield url


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
def trained(server: str, place: Path) -> TrainResult:
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
    return pretrain(config, {"src_txt": [poem * count for poem in POEMS for count in (1, 2, 3, 4)]})


def test_a_stage_leaves_all_of_it_on_the_server(trained: TrainResult, server: str, place: Path) -> None:
    client = MlflowClient(server)
    run = client.get_run(trained.run_id)
    assert (run.info.status, run.info.run_name, run.data.tags["stage"]) == ("FINISHED", "pretrain", "pretrain")
    assert client.get_experiment(run.info.experiment_id).name == "moyun"
    assert run.data.tags["version.mlflow"] == mlflow.__version__
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
    assert [f"models:/{output.model_id}" for output in run.outputs.model_outputs] == [trained.model_uri]
    assert version_with_alias("small", "champion") is None
    number = register_version(trained.model_uri, "small", {"test_rows": "7"})
    assert version_with_alias("small", "champion") is None
    move_alias("small", "champion", number)
    version = version_with_alias("small", "champion")
    assert version is not None
    assert (str(version.version), version.tags["test_rows"]) == (number, "7")
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
    assert stored.data.params["cfg.tracking.tracking_uri"].startswith("postgresql+psycopg2://(redacted)@127.0.0.1:")
    command = [postgresql_binaries() / "pg_dump", postgresql.replace("+psycopg2", "")]
    dump = subprocess.run(command, capture_output=True, check=True).stdout
    assert run.info.run_id.encode() in dump
    assert PASSWORD.encode() not in dump
    files = [path for path in (place / "mlruns").rglob("*") if path.is_file()]
    assert "config.yaml" in {path.name for path in files}
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
