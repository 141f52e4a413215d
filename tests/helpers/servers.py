"""Real servers on 127.0.0.1 for tests and measurements: `mlflow server`, and a PostgreSQL of one's own."""

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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "c4n4ry"


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


class TrackingServer:
    """`mlflow server` on a port that stays the same when it is killed and started again."""

    def __init__(self, store_uri: str, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        self.log = folder / "server.log"
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", store_uri]
        self.command = [*command, "--artifacts-destination", str(folder / "artifacts")]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        self.environment = {**kept, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.alive = ExitStack()

    def start(self) -> None:
        arguments = {"env": self.environment, "cwd": self.folder}
        started = self.alive.enter_context(process(self.command, self.log, signal.SIGTERM, **arguments))
        self.pid = started.pid
        wait_until(lambda: answers(f"{self.url}/health"), started, self.log)

    def signal(self, number: signal.Signals) -> None:
        """To all of its processes, which have a session of their own."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """Without a word: SIGKILL."""
        self.signal(signal.SIGKILL)
        self.alive.close()

    def stop(self) -> None:
        self.alive.close()


@contextmanager
def tracking_server(store_uri: str, folder: Path) -> Iterator[TrackingServer]:
    server = TrackingServer(store_uri, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


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


@contextmanager
def postgresql_cluster() -> Iterator[str]:
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
