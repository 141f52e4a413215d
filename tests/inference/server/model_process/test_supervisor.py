"""Two real processes: what they import, what becomes of requests when one of them dies, and of the other."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from modules.config.loader import load_config
from modules.inference.server.lifecycle import Lifecycle
from modules.inference.server.model_process import process_handle
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.model_sources import Dies, Fails
from tests.helpers.models import ROOT, make_config, make_decoder, save_model
from tests.helpers.server_tools import address_in, model_processes, process, send_and_keep, until

pytestmark = pytest.mark.server

BODY = {"prompt": "春", "max_tokens": 20, "seed": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    decoder = make_decoder(make_config(tokenizer.vocab_size, max_position_embeddings=2000))
    return save_model(tmp_path_factory.mktemp("saved") / "model", decoder, tokenizer, {})


@pytest.fixture
def started(saved: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with process(saved, tmp_path / "log") as started:
        yield started


def child_of(started: subprocess.Popen[str]) -> psutil.Process:
    """The model's process."""
    (child,) = psutil.Process(started.pid).children()
    return child


def text_of(url: str) -> str:
    text: str = httpx.post(f"{url}/v1/completions", json=BODY, timeout=60).json()["choices"][0]["text"]
    return text


def test_the_servers_process_never_imports_torch(started: subprocess.Popen[str]) -> None:
    """It would take some 200 MB, and its threads."""
    url = address_in(started)
    assert text_of(url)
    assert httpx.get(f"{url}/card").json()["parameters"]
    chat = {"messages": [{"role": "user", "content": "春"}], "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    assert httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=60).status_code == 200
    mapped = {Path(entry.path).name for entry in psutil.Process(started.pid).memory_maps()}
    assert any(name.startswith("libpython") or name.startswith("tokenizers") for name in mapped)
    assert not [name for name in mapped if "torch" in name]
    assert [entry for entry in child_of(started).memory_maps() if "torch" in Path(entry.path).name]


def test_a_child_that_dies_costs_its_requests_and_is_started_again(
    started: subprocess.Popen[str], tmp_path: Path
) -> None:
    url = address_in(started)
    expected = text_of(url)
    stream = send_and_keep(url, "/v1/completions", BODY | {"max_tokens": 1024, "stream": True})
    answers: list[httpx.Response] = []
    body = BODY | {"prompt": ["春"] * 20, "max_tokens": 1024}
    asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=60)))
    asking.start()
    until(lambda: "moyun_queue_rows 5" in httpx.get(f"{url}/metrics").text)
    first = child_of(started)
    first.kill()
    asking.join()
    error = answers[0].json()["error"]
    assert (answers[0].status_code, error["code"]) == (500, "model_lost")
    assert error["message"] == "the model's process ended while this was written; it is being started again"
    received = b""
    while b"model_lost" not in received:
        received += stream.recv(65536)
    assert b"[DONE]" not in received
    ready = httpx.get(f"{url}/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
    assert httpx.get(f"{url}/health").status_code == 200
    until(lambda: httpx.get(f"{url}/ready").status_code == 200)
    assert child_of(started).pid != first.pid
    assert text_of(url) == expected
    assert "moyun_running_rows 0" in httpx.get(f"{url}/metrics").text
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line == (
        "the model's process died (killed by SIGKILL: the system does so when memory runs out), "
        "and its requests failed; starting it again"
    )
    started.send_signal(signal.SIGTERM)
    assert started.wait(20) == 0


def test_the_child_ends_when_the_server_is_killed(started: subprocess.Popen[str]) -> None:
    url = address_in(started)
    child = child_of(started)
    stream = send_and_keep(url, "/v1/completions", BODY | {"prompt": ["春"] * 16, "max_tokens": 1024, "stream": True})
    until(lambda: "moyun_running_rows 16" in httpx.get(f"{url}/metrics").text)
    started.kill()
    child.wait(10)
    assert not child.is_running()
    stream.close()


def test_a_child_that_dies_while_the_server_drains_is_not_started_again(
    started: subprocess.Popen[str], tmp_path: Path
) -> None:
    url = address_in(started)
    stream = send_and_keep(url, "/v1/completions", BODY | {"max_tokens": 600, "stream": True})
    until(lambda: "moyun_running_rows 1" in httpx.get(f"{url}/metrics").text)
    child = child_of(started)
    child.suspend()
    started.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{url}/ready").status_code == 503)
    child.kill()
    assert started.wait(20) == 0
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith("and its requests failed")
    stream.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_both_processes_lets_requests_finish(number: signal.Signals, saved: Path, tmp_path: Path) -> None:
    """As Ctrl-C in a terminal and systemd send it."""
    with process(saved, tmp_path / "log") as started:
        url = address_in(started)
        stream = send_and_keep(url, "/v1/completions", BODY | {"max_tokens": 600, "stream": True})
        until(lambda: "moyun_running_rows 1" in httpx.get(f"{url}/metrics").text)
        for each in (child_of(started).pid, started.pid):
            os.kill(each, number)
        received = b""
        while piece := stream.recv(65536):
            received += piece
        assert b"data: [DONE]" in received
        assert started.wait(20) == 0
    assert (tmp_path / "log").read_text() == ""


def test_a_child_that_hangs_is_killed_and_started_again(
    saved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process_handle, "PING_SECONDS", 0.5)
    server = Lifecycle(load_config("serve", ["port=0"]), saved, "x")
    answers: list[httpx.Response] = []

    def work() -> None:
        try:
            until(lambda: httpx.get(f"{server.address}/ready").status_code == 200)
            (child,) = model_processes()
            child.suspend()
            answers.append(httpx.post(f"{server.address}/v1/completions", json=BODY, timeout=60))
            until(lambda: httpx.get(f"{server.address}/ready").status_code == 200)
            answers.append(httpx.post(f"{server.address}/v1/completions", json=BODY, timeout=60))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    working = threading.Thread(target=work)
    working.start()
    server.run(lambda model: None)
    working.join()
    assert [answer.status_code for answer in answers] == [500, 200]
    (said,) = [record.message for record in caplog.records if "died" in record.message]
    assert said.startswith("the model's process died (it didn't answer for 3 s, and was killed), and its")


def test_a_child_that_dies_again_and_again_ends_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = Lifecycle(load_config("serve", ["port=0"]), Dies(tmp_path), "x")
    with pytest.raises(
        ValueError, match="the model's process died 3 times while it loaded: killed by SIGKILL: the sys"
    ):
        server.run(lambda address: pytest.fail("it says that it is ready"))
    assert (tmp_path / "deaths").read_text() == "xxx"
    assert [record.message.partition(" (")[0] for record in caplog.records if "died" in record.message] == [
        "the model's process died while it loaded"
    ] * 2


def test_a_system_without_room_for_a_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(module: str, connection: socket.socket) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(process_handle, "start_python", full)
    server = Lifecycle(load_config("serve", ["port=0"]), Fails("user"), "x")
    with pytest.raises(ValueError, match="died 3 times while it loaded: it can't be started: Cannot allocate memory$"):
        server.run(lambda model: pytest.fail("it says that it is ready"))


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [("user", ValueError, "no such thing"), ("own", ZeroDivisionError, "ours"), ("odd", RuntimeError, "1 and 2")],
)
def test_what_fails_in_the_child_is_raised_here(what: str, kind: type[Exception], message: str) -> None:
    server = Lifecycle(load_config("serve", ["port=0"]), Fails(what), "x")
    with pytest.raises(kind) as caught:
        server.run(lambda address: pytest.fail("it says that it is ready"))
    assert str(caught.value) == message
    assert "in find" in "".join(caught.value.__notes__)  # where it was raised


def test_it_starts_in_any_folder_with_what_python_imports_here(saved: Path, tmp_path: Path) -> None:
    """Called from Python, where another package called modules lies in the current folder."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "__init__.py").write_text("raise RuntimeError('not ours')")
    script = (
        f"import sys; sys.path[0] = {str(ROOT)!r}\n"
        "from modules.config.loader import load_config\n"
        "from pipelines.serve import serve\n"
        f"serve(load_config('serve', ['model={saved}', 'port=0']))\n"
    )
    started = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert json.dumps(text_of(address_in(started)))
    finally:
        started.kill()
        started.wait()
