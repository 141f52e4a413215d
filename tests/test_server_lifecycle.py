"""The command itself: what it refuses to serve, how it says so, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
import torch
from conftest import ROOT, make_config, make_decoder
from mlflow.pyfunc.scoring_server import invocations
from safetensors.torch import load_file, save_file
from server_tools import send_and_keep, until

from modules.checkpoint import CheckpointError, save_model
from modules.config import ConfigError, load_config
from modules.registry import log_model
from modules.server import lifecycle
from modules.server.lifecycle import Lifecycle, listen
from modules.tokenizer import Tokenizer, load_tokenizer
from modules.tracking import connect
from pipelines.register import register
from pipelines.serve import name_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    decoder = make_decoder(make_config(tokenizer.vocab_size, max_position_embeddings=2000))
    return save_model(folder, decoder, tokenizer.with_prompt_template("问：{src_txt}\n"), {})


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "model")


# --- a model that isn't what was saved ---


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def change_the_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    first, second = [token for token in vocab if len(token) == 1][-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def change_the_end_of_text(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"end_of_text": "。"}, ensure_ascii=False), encoding="utf-8")


def change_the_prompt(folder: Path) -> None:
    load_tokenizer(folder).with_prompt_template("问：{src_txt}").save(folder)


def change_the_number_format(folder: Path) -> None:
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


FAULTS = [flip_a_byte, change_the_tokenizer, change_the_end_of_text, change_the_prompt, change_the_number_format]


@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
def test_a_changed_model_is_not_served(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    config = load_config("serve", [f"model={folder}", "port=0"])
    with pytest.raises(CheckpointError, match=f"{folder}: .*differs") as caught:
        Lifecycle(config, folder, "x").run(lambda address: pytest.fail("it says that it is ready"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
def test_a_changed_model_is_not_registered(folder: Path, store: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=f"{folder}: .*differs"):
        register(load_config("register", [f"model={folder}", "tracking.log_system_metrics=false"]))


@pytest.fixture(scope="module")
def logged(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as the registry hands it out."""
    place = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
        connect(folder=place)
        with mlflow.start_run():
            uri = log_model(saved)
        return Path(mlflow.artifacts.download_artifacts(uri))


def test_a_changed_model_is_not_loaded_from_the_registry(logged: Path, tmp_path: Path) -> None:
    for damage in (None, *FAULTS):
        copy = shutil.copytree(logged, tmp_path / (damage.__name__ if damage else "sound"))
        (model,) = copy.glob("artifacts/*/model.yaml")
        if damage is None:
            assert mlflow.pyfunc.load_model(str(copy)).predict({"src_txt": ["春"]}, params={"max_new_tokens": 1})
            continue
        damage(model.parent)
        with pytest.raises(CheckpointError, match="differs"):
            mlflow.pyfunc.load_model(str(copy))


# --- the process ---


@contextmanager
def process(folder: Path, log: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m pipelines.serve`; whatever happens, it ends with the block."""
    command = [sys.executable, "-m", "pipelines.serve", f"model={folder}", "port=0", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w") as errors:
        started = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=folder.parent
        )
        try:
            yield started
        finally:
            started.kill()
            started.wait()


def address_in(started: subprocess.Popen[str]) -> str:
    assert started.stdout
    for line in started.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]
    return pytest.fail("the server ended before it was ready")


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
def test_a_refusal_is_one_line_and_exit_code_1(folder: Path, tmp_path: Path) -> None:
    flip_a_byte(folder)
    with process(folder, tmp_path / "log") as started:
        assert started.wait(60) == 1
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line == f"serve: {folder}: model.safetensors differs from what was saved; copy the folder again"


@pytest.mark.server
def test_alive_but_not_ready_while_the_model_is_loading(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    config = load_config("serve", [f"model={saved}", "port=0"])
    server = Lifecycle(config, saved, "x")
    load = lifecycle.load

    def look_around(*arguments: Any) -> Any:
        for path in ("/health", "/ready"):
            found.append(httpx.get(server.address + path))
        found.append(httpx.post(f"{server.address}/v1/completions", json={"prompt": "春"}))
        return load(*arguments)

    monkeypatch.setattr(lifecycle, "load", look_around)
    server.run(lambda address: server.stop())
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


def test_small_answers_are_sent_at_once() -> None:
    """Nagle's algorithm would hold an answer's last packet back until the client's TCP speaks."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# --- configuration ---


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("port=70000", "port (70000) must be from 0 to 65535"),
        ("host=", None),  # not given
        ("backend=llama_cpp", "backend=llama_cpp: no rows can join llama.cpp's running batch here"),
        ("dtype=int4", "dtype=int4 (command line): must be auto | float32 | bfloat16 | int8"),
        ("limits.batch_rows=0", "limits.batch_rows (0) must be at least 1"),
        ("limits.request_rows=64", "limits.request_rows (64) is over queue_rows (32): it could never be queued"),
        ("limits.request_seconds=0", "limits.request_seconds (0.0) must be a positive number"),
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


@pytest.mark.server
def test_mlflows_own_server_gives_the_same_answers(logged: Path, saved: Path, tmp_path: Path) -> None:
    """`mlflow models serve` is mlflow.pyfunc.scoring_server around the model that the registry hands out."""
    model = mlflow.pyfunc.load_model(str(logged))
    forms: list[dict[str, Any]] = [
        {"inputs": {"src_txt": ["白日依山尽，", "春"], "id": [1, 2]}},
        {"inputs": ["春"]},
        {"instances": [{"src_txt": "春"}]},
        {"dataframe_records": [{"src_txt": "春", "id": 3}]},
        {"dataframe_split": {"columns": ["id", "src_txt"], "data": [[1, "春"]]}},
    ]
    params = {"params": {"max_new_tokens": 12, "temperature": 0.8, "top_k": 40, "seed": 2, "stop": ["。"]}}
    with process(saved, tmp_path / "log") as started:
        url = address_in(started)
        for form in forms:
            body = json.dumps(form | params).encode()
            expected = invocations(body, "application/json", model, model.metadata.get_input_schema())
            found = httpx.post(f"{url}/invocations", content=body, headers={"Content-Type": "application/json"})
            assert (found.status_code, found.json()) == (expected.status, json.loads(expected.response))
