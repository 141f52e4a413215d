"""A store that can't be used is refused in one line that says what to do; a new one is made once, and whole."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.store.db import utils as mlflow_tables

from modules.system.atomic import write_text
from modules.tracking.outbox.store_check import make_store, require_store, wrong_form, wrong_tables
from tests.helpers.models import ROOT


class Service(BaseHTTPRequestHandler):
    """Says the same to everything."""

    status, body, kind = 200, b"{}", "application/json"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def refusal(uri: str) -> str:
    with pytest.raises(ValueError, match="can't be used: ") as caught:
        require_store(uri)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert "tracking.tracking_uri=… or MLFLOW_TRACKING_URI" in message
    return message


NO_MLFLOW = "there is no MLflow tracking server"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"{}", NO_MLFLOW), (200, b"", NO_MLFLOW), (200, b'{"status": "ok"}', NO_MLFLOW), (200, b"[]", NO_MLFLOW),
        (200, b"<html>Log in, please</html>", NO_MLFLOW), (200, b'{"experiment": {"a": 1}}', NO_MLFLOW),
        (200, b'{"experiment": 7}', NO_MLFLOW), (404, b"<html>none</html>", NO_MLFLOW),
        (404, b'{"detail": "Not Found"}', NO_MLFLOW), (204, b"", NO_MLFLOW), (405, b"no", NO_MLFLOW),
        (401, b"who are you", r"HTTP 401\)\. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRA"),
        (401, b'{"error_code": "UNAUTHENTICATED", "message": "x"}', r"HTTP 401\)\. Set MLFLOW_TRACKING_USERNAME"),
        (403, b"Permission denied", r"refuses this user \(HTTP 403\)"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "x"}', r"refuses this user \(HTTP 403\)"),
        (503, b"later", "HTTP 5xx"),
    ],
)  # fmt: skip
def test_what_answers_but_is_no_store_that_can_be_used(
    service: str, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, expected: str
) -> None:
    monkeypatch.setattr(Service, "status", status)
    monkeypatch.setattr(Service, "body", body)
    message = refusal(service)
    assert re.search(expected, message), message
    assert "Log in" not in message


def test_an_mlflow_server_without_the_experiment_is_one(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "status", 404)
    monkeypatch.setattr(Service, "body", b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}')
    require_store(service)


def test_a_proxy_is_named_and_a_password_in_it_is_not(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:c4n4ry@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    message = refusal("http://store.example.org:5000")
    assert "connection refused, through the proxy http://(redacted)@127.0.0.1:9" in message
    assert "Set NO_PROXY=store.example.org" in message
    assert "c4n4ry" not in message
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "connection refused. Start it" in refusal("http://127.0.0.1:9")


def test_https_to_a_server_that_speaks_http(service: str) -> None:
    assert "doesn't speak HTTPS; write http://" in refusal(service.replace("http:", "https:"))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("./mlruns", "keeps no runs in a folder any more"), ("file:///tmp/mlruns", "no runs in a folder any more"),
        ("/tmp/mlruns", "keeps no runs in a folder any more"), ("mlflow.db", "is named sqlite:///mlflow.db"),
        ("file:///a/mlflow.db", "is named sqlite:///a/mlflow.db"), ("127.0.0.1:5000", "scheme, http://127.0.0.1:5000"),
        ("localhost:5000", "scheme, http://localhost:5000"), ("tracking.example.org:80/x", "http://tracking.example.org:"),
        ("http://[::1", "IPv6 address stands in brackets"), ("http://127.0.0.1:99999", "its port is no number from 1"),
        ("http://a b", "'a b' can't be the name of a host"), ("http://host:port", "its port is no number from 1"),
        ("http://me:c4n/ary@host:99999", "http://(redacted)@host:99999 can't be used: its port is no number"),
        ("SQLITE:////tmp/a.db", "spelt in lower case, sqlite:////tmp/a.db"), ("HTTP://a", "lower case, http://a."),
        ("databricks-uc", "Unity Catalog keeps models, not runs; those are in databricks. Name another one"),
        ("localhost", "scheme, http://localhost"), ("http://", "names no host"), ("http:///x", "names no host"),
        ("weird://x", "no store of this scheme"), ("s3://bucket/runs", "no store of this scheme"),
        ("sqlite://mlflow.db", "sqlite:///mlflow.db"), ("sqlite:mlflow.db", "sqlite:///mlflow.db"),
        ("sqlite:///:memory:", "would end with this process"), ("sqlite://", "would end with this process"),
        ("postgres://me:c4n4ry@host/db", r"is spelt postgresql, postgresql://(redacted)@host/db"),
        ("mysql+nothing://host/db", "can't be used: "), ("databricks", "Databricks' credentials aren't there"),
    ],
)  # fmt: skip
def test_a_uri_that_is_none_of_a_store(store: Path, uri: str, expected: str) -> None:
    message = refusal(uri)
    assert expected in message
    assert "c4n4ry" not in message
    assert sorted(path.name for path in store.iterdir()) == ["mlflow.db"]


def schema(path: Path, version: str | None, runs: int = 1) -> Path:
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM alembic_version")
        if version:
            database.execute("INSERT INTO alembic_version VALUES (?)", [version])
        for number in range(runs):
            values = f"'r{number}', 'FINISHED', 'active', 0"
            database.execute(f"INSERT INTO runs (run_uuid, status, lifecycle_stage, experiment_id) VALUES ({values})")
    database.close()
    long_ago = time.time() - 60
    os.utime(path, (long_ago, long_ago))
    return path


@pytest.mark.parametrize(
    ("version", "runs", "expected"),
    [
        ("728d730b5ebd", 1, "of an earlier MLflow: copy it, then run `mlflow db upgrade sqlite:///mlflow.db`"),
        ("ffffffffffff", 1, "its tables are of a later MLflow than "),
        ("728d730b5ebd", 0, "move mlflow.db away, and it is made anew"), (None, 0, "move mlflow.db away"),
    ],
)  # fmt: skip
def test_tables_of_another_mlflow(store: Path, version: str | None, runs: int, expected: str) -> None:
    before = schema(store / "mlflow.db", version, runs).read_bytes()
    assert expected in refusal("sqlite:///mlflow.db")
    assert (store / "mlflow.db").read_bytes() == before


def test_files_that_are_no_store(store: Path) -> None:
    (store / "text.db").write_text("no database\n" * 100)
    (store / "folder.db").mkdir()
    (store / "cut.db").write_bytes((store / "mlflow.db").read_bytes()[:20_000])
    for place, expected in {
        "text.db": "no SQLite database, or damaged", "folder.db": "this is a folder", "cut.db": "or damaged",
        "text.db/x.db": "text.db: this is no folder", "../../../../../../../../proc/x.db": "No such file",
    }.items():  # fmt: skip
        assert expected in refusal(f"sqlite:///{place}")


@pytest.mark.parametrize("kind", ["device", "pipe", "socket"])
def test_a_device_is_never_taken_for_a_new_store(store: Path, kind: str) -> None:
    place = store / "special"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(place))
    elif os.getuid():
        pytest.skip("only root makes devices")
    else:
        os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    before = place.stat()
    (store / "link.db").symlink_to("special")
    for name in ("special", "link.db"):
        assert f"no regular file but a {kind}, which is never replaced" in refusal(f"sqlite:///{name}")
    with pytest.raises(ValueError, match=f"no regular file but a {kind}"):
        write_text(place, "over it")
    after = place.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.parametrize("empty", [True, False])
def test_a_link_to_a_new_store_stays_one(store: Path, empty: bool) -> None:
    (store / "link.db").symlink_to("elsewhere.db")
    if empty:
        (store / "elsewhere.db").touch()
    require_store("sqlite:///link.db")
    assert (store / "link.db").is_symlink()
    assert wrong_tables(store / "elsewhere.db") is None


def test_a_file_that_others_write_to_is_waited_for(store: Path) -> None:
    """`mlflow ui` makes its tables in place, step by step."""
    whole = (store / "mlflow.db").read_bytes()
    schema(store / "mlflow.db", "728d730b5ebd", 0)
    os.utime(store / "mlflow.db")
    threading.Timer(0.5, lambda: (store / "mlflow.db").write_bytes(whole)).start()
    make_store(store / "mlflow.db")
    assert wrong_tables(store / "mlflow.db") is None


def test_a_database_of_the_users_own_gets_mlflows_tables_too(store: Path) -> None:
    with sqlite3.connect(store / "mine.db") as database:
        database.execute("CREATE TABLE mine (a)")
    require_store(f"sqlite:///{store / 'mine.db'}")
    assert [e.name for e in MlflowClient(f"sqlite:///{store / 'mine.db'}").search_experiments()] == ["Default"]


START = """
import sys
from modules.config.base import StageConfig, TrackingConfig
from modules.tracking.stage_run import stage_run
print("ready", flush=True)
sys.stdin.readline()
tracking = TrackingConfig("sqlite:///new/deep/runs.db", log_system_metrics=False)
with stage_run("prepare", StageConfig(tracking=tracking)) as run:
    run.log_metrics({"a": 1.0})
"""


def test_commands_that_start_at_once_on_a_new_store_all_have_their_run(store: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", START]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(command, cwd=store, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        said.append(process.communicate(timeout=120)[1])
    assert [process.returncode for process in started] == [0] * 4, said
    client = MlflowClient(f"sqlite:///{store / 'new' / 'deep' / 'runs.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "moyun"]
    runs = client.search_runs([experiment.experiment_id])
    assert [(run.info.status, run.data.metrics) for run in runs] == [("FINISHED", {"a": 1.0})] * 4
    assert [path.name for path in (store / "new" / "deep").iterdir()] == ["runs.db"]


MAKES = """
import os, signal, sys
from pathlib import Path
from mlflow.store.db import utils
from modules.tracking.outbox.store_check import make_store
utils._upgrade_db = lambda engine: os.kill(os.getpid(), signal.SIGKILL)
make_store(Path("new.db"))
"""


def test_a_start_that_is_killed_leaves_no_half_made_store(store: Path) -> None:
    assert hasattr(mlflow_tables, "_upgrade_db"), "where the other process is killed"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", MAKES], cwd=store, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (store / "new.db").exists()
    require_store("sqlite:///new.db")
    assert wrong_tables(store / "new.db") is None
    assert sorted(path.name for path in store.iterdir()) == ["mlflow.db", "new.db"]


def test_the_first_experiments_files_go_where_mlflow_puts_them(store: Path) -> None:
    require_store("sqlite:///ours.db")
    (ours,) = MlflowClient("sqlite:///ours.db").search_experiments()
    (theirs,) = MlflowClient("sqlite:///theirs.db").search_experiments()
    assert ours.artifact_location == theirs.artifact_location


def test_a_new_store_on_a_file_system_without_hard_links(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*paths: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    make_store(store / "new.db")
    assert wrong_tables(store / "new.db") is None
    assert sorted(path.name for path in store.glob("*new.db*")) == ["new.db"]


def test_a_user_who_may_not_see_every_experiment(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    def forbidden(*arguments: object) -> None:
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    make_store(store / "new.db")
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", forbidden)
    require_store(f"sqlite:///{store / 'new.db'}")
    monkeypatch.setattr(MlflowClient, "search_experiments", forbidden)
    with pytest.raises(ValueError, match="can't be used"):
        require_store(f"sqlite:///{store / 'new.db'}")


def test_the_address_of_a_plugins_store_is_its_own_affair() -> None:
    assert wrong_form("arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/mine") is None
    assert wrong_form("mlruns") is not None
    assert wrong_form("file:mlruns") is not None
