"""The command itself: what it refuses to serve, how it says so, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.checkpoint.weights import CheckpointError
from modules.config.loader import ConfigError, load_config
from modules.inference.server.lifecycle import Lifecycle, listen
from modules.tokenizer.tokenizer import Tokenizer
from pipelines.serve import name_of, serve
from tests.helpers.model_sources import OnceThere
from tests.helpers.models import make_config, make_decoder, save_model
from tests.helpers.server_tools import address_in, process, send_and_keep, until


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    decoder = make_decoder(make_config(tokenizer.vocab_size, max_position_embeddings=2000))
    return save_model(folder, decoder, tokenizer.with_prompt_template("问：{src_txt}\n"), {})


# --- the process ---


@pytest.mark.server
def test_sigterm_lets_requests_finish(saved: Path, tmp_path: Path) -> None:
    with process(saved, tmp_path / "log", "name=poet") as started:
        url = address_in(started)
        body = {"prompt": "春", "max_tokens": 400, "seed": 1}
        expected = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"]
        connection = send_and_keep(url, "/v1/completions", body | {"max_tokens": 1024, "stream": True})
        until(lambda: "moyun_running_rows 1" in httpx.get(f"{url}/metrics").text)
        answers = [send_and_keep(url, "/v1/completions", body) for _ in range(2)]
        until(lambda: "moyun_running_rows 3" in httpx.get(f"{url}/metrics").text)
        started.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/ready").status_code == 503)
        refused = httpx.post(f"{url}/v1/completions", json=body)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        for answer in answers:
            assert json.loads(read_all(answer).partition(b"\r\n\r\n")[2])["choices"] == expected
        assert b"data: [DONE]" in read_all(connection)
        assert started.wait(20) == 0
    assert (tmp_path / "log").read_text() == ""


def read_all(connection: socket.socket) -> bytes:
    """Up to the end of the answer: the server hangs up after it, as it is going down."""
    pieces = []
    connection.settimeout(20)
    while piece := connection.recv(65536):
        pieces.append(piece)
    connection.close()
    return b"".join(pieces)


@pytest.mark.server
def test_the_drain_is_bounded(saved: Path, tmp_path: Path) -> None:
    """A request that would take longer than drain_seconds is told, and the process ends."""
    with process(saved, tmp_path / "log", "limits.drain_seconds=0.2") as started:
        url = address_in(started)
        options = {"temperature": 0.0, "stream": True, "max_tokens": 1024, "repetition_penalty": 1.01}
        connections = [send_and_keep(url, "/v1/completions", options | {"prompt": ["春" * 800] * 8}) for _ in range(4)]
        until(lambda: "moyun_running_rows 16" in httpx.get(f"{url}/metrics").text)
        started.send_signal(signal.SIGTERM)
        for connection in connections:
            assert b"the server was stopped before this was done" in read_all(connection)
        assert started.wait(20) == 0
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.server
def test_alive_but_not_ready_while_the_model_is_loading(saved: Path, tmp_path: Path) -> None:
    found: list[Any] = []
    config = load_config("serve", [f"model={saved}", "port=0"])
    server = Lifecycle(config, OnceThere(tmp_path / "go", saved), "x")

    def look_around() -> None:
        for path in ("/health", "/ready"):
            found.append(httpx.get(server.address + path))
        found.append(httpx.post(f"{server.address}/v1/completions", json={"prompt": "春"}))
        (tmp_path / "go").touch()

    looking = threading.Thread(target=look_around)
    looking.start()
    server.run(lambda address: server.stop())
    looking.join()
    assert [answer.status_code for answer in found] == [200, 503, 503]
    assert found[1].json() == {"status": "loading"}
    assert found[2].json()["error"]["message"] == "the server is loading"


def is_alive(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.server
def test_sigterm_while_the_model_is_loading(saved: Path, tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with process(saved, tmp_path / "log", f"port={port}") as started:
        until(lambda: is_alive(port))
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 0
    assert (tmp_path / "log").read_text() == ""


def test_a_port_that_is_taken_is_named(saved: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"can't listen on host=127.0.0.1 port={port}: .*in use; port=0 takes"):
            Lifecycle(load_config("serve", [f"port={port}"]), saved, "x")
    with pytest.raises(ValueError, match=r"can't listen on host=nowhere\.invalid"):
        listen("nowhere.invalid", 0)


@pytest.mark.server
def test_a_limit_that_no_prompt_could_keep_is_refused_before_it_is_ready(saved: Path) -> None:
    config = load_config("serve", [f"model={saved}", "port=0", "limits.prompt_tokens=3"])
    with pytest.raises(ValueError, match="limits.prompt_tokens=3 .* leaves no room for text: .* alone take 6 tokens"):
        Lifecycle(config, saved, "x").run(lambda address: pytest.fail("it says that it is ready"))


def test_small_answers_are_sent_at_once() -> None:
    """Nagle's algorithm would hold an answer's last packet back until the client's TCP speaks."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_what_is_no_folder_is_refused_before_anything_is_said(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=f"{name}(: no such model folder; .*models:/NAME@| is empty| is a file)"):
        serve(load_config("serve", [f"model={tmp_path / name}", "port=0"]))
    assert capsys.readouterr().out == ""


# --- configuration ---


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("port=70000", "port (70000) must be from 0 to 65535"),
        ("host=", None),  # not given
        (
            "backend=llama_cpp",
            "backend (command line): no such key; moyun computes with torch alone: for llama.cpp convert the model",
        ),
        ("dtype=int4", "dtype=int4 (command line): must be auto | float32 | bfloat16 | int8"),
        ("limits.batch_rows=0", "limits.batch_rows (0) must be at least 1"),
        ("limits.request_rows=64", "limits.request_rows (64) is over queue_rows (32): it could never be queued"),
        ("limits.request_seconds=0", "limits.request_seconds (0.0) must be a positive number"),
        ("follow_seconds=-1", "follow_seconds (-1.0) must be 0 (never) or a number of seconds"),
        ("follow_seconds=nan", "follow_seconds (nan) must be 0 (never) or a number of seconds"),
        ("limits.bodybytes=5", "did you mean limits.body_bytes?"),
    ],
)
def test_a_wrong_configuration_is_named(argument: str, complaint: str | None) -> None:
    if complaint is None:
        assert load_config("serve", [argument]).host == "127.0.0.1"
        return
    with pytest.raises(ConfigError) as caught:
        load_config("serve", [argument])
    assert complaint in str(caught.value)


def test_what_clients_call_the_model() -> None:
    assert name_of("models:/moyun@champion", Path("x")) == "moyun"
    assert name_of("models:/moyun/3", Path("x")) == "moyun"
    assert name_of("outputs/finetune-1/model", Path("outputs/finetune-1/model")) == "finetune-1"
    assert name_of("mine", Path("/somewhere/mine")) == "mine"
