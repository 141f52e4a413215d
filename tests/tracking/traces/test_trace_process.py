"""MLflow for traces is in a process of its own: the server's has none of it, and outlives it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracing.client import TracingClient

from modules.config.generation import ServeConfig
from modules.config.loader import load_config
from modules.inference.server.model_process.messages import Folder
from modules.inference.server.records.ratings import Rating
from modules.tracking.traces import trace_process, trace_sender
from modules.tracking.traces.trace_process import TraceProcess
from modules.tracking.traces.trace_sender import TraceSender, sending_traces
from tests.helpers.models import ROOT
from tests.helpers.served_records import answer_record


@pytest.fixture
def config(store: Path) -> ServeConfig:
    return load_config(
        "serve", [f"model={store}", "traces=1", f"tracking.tracking_uri=sqlite:///{store / 'mlflow.db'}"]
    )


@pytest.fixture
def process(config: ServeConfig, store: Path) -> Iterator[TraceProcess]:
    yield (started := TraceProcess(config, Folder(store)))
    started.end()


def kept(config: ServeConfig) -> list[str | None]:
    client = TracingClient(config.tracking.tracking_uri)
    return [trace.info.client_request_id for trace in client.search_traces(locations=["1"])]


def test_traces_go_on_when_the_process_that_sends_them_was_killed(
    config: ServeConfig, process: TraceProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_sender, "LONGEST_PAUSE", 0.01)
    sender = TraceSender(process, 1.0)
    sender.answered(before := answer_record())
    sender.rate(Rating(before.id, "up"))
    assert process.process
    process.process.kill()
    process.process.wait()
    sender.answered(after := answer_record())
    sender.close(100)
    assert set(kept(config)) == {before.id, after.id}


def test_it_ends_with_the_servers_process(process: TraceProcess) -> None:
    assert process.process
    process.connection.close()
    assert process.process.wait(60) == 0


def test_nothing_is_left_of_it_when_the_server_has_ended(config: ServeConfig, store: Path) -> None:
    with sending_traces(config, Folder(store)) as (sender, where):
        assert where == f"experiment moyun of sqlite:///{store / 'mlflow.db'}"
        assert isinstance(sender.store, TraceProcess)
        assert (started := sender.store.process)
        sender.answered(record := answer_record())
    assert started.poll() is not None
    assert kept(config) == [record.id]


def test_the_servers_process_has_neither_mlflow_nor_torch() -> None:
    code = "import sys, pipelines.serve; sys.exit(bool({'mlflow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=100).returncode == 0


def test_a_process_that_dies_as_it_begins_is_said(
    config: ServeConfig, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_process, "CHILD", "modules.tracking.traces.no_such_module")
    with pytest.raises(ValueError, match=r"has died as it began; .* traces=0 serves without them"):
        TraceProcess(config, Folder(store))
