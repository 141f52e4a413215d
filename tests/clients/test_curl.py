"""curl, as the docs use it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.server_tools import RealServer, real_server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with real_server(tmp_path_factory.mktemp("server"), tokenizer.with_prompt_template("问：{src_txt}\n")) as running:
        yield running


def curl(*arguments: str) -> str:
    program = shutil.which("curl") or pytest.skip("no curl here: install Debian's curl")
    return subprocess.run(
        [program, "-sS", "--max-time", "60", *arguments], check=True, capture_output=True, text=True
    ).stdout


def headers(server: RealServer) -> list[str]:
    return ["-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {server.key}"]


def test_text_in_every_protocol(server: RealServer) -> None:
    expected = server.answer("春", max_new_tokens=9, seed=1)
    sampling = {"max_tokens": 9, "seed": 1}
    body = json.dumps({"prompt": "春"} | sampling)
    assert (
        json.loads(curl(f"{server.url}/v1/completions", *headers(server), "-d", body))["choices"][0]["text"] == expected
    )
    body = json.dumps({"messages": [{"role": "user", "content": "春"}]} | sampling)
    answer = json.loads(curl(f"{server.url}/v1/chat/completions", *headers(server), "-d", body))
    assert answer["choices"][0]["message"]["content"] == expected
    body = json.dumps({"inputs": {"src_txt": ["春"]}, "params": {"max_new_tokens": 9, "seed": 1}})
    assert json.loads(curl(f"{server.url}/invocations", *headers(server), "-d", body)) == {
        "predictions": [{"text": expected}]
    }


def test_a_stream_as_it_comes(server: RealServer) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "春"}], "max_tokens": 9, "seed": 1, "stream": True})
    lines = [
        line
        for line in curl("-N", f"{server.url}/v1/chat/completions", *headers(server), "-d", body).splitlines()
        if line
    ]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-1]]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == server.answer(
        "春", max_new_tokens=9, seed=1
    )


def test_heads_methods_names_and_keys(server: RealServer) -> None:
    assert curl("-I", f"{server.url}/health").startswith("HTTP/1.1 200")
    for method, path, right in (("OPTIONS", "/v1/chat/completions", "POST"), ("DELETE", "/health", "GET")):
        head = curl("-i", "-X", method, f"{server.url}{path}", *headers(server))
        assert head.startswith("HTTP/1.1 405")
        assert right in next(line for line in head.lower().splitlines() if line.startswith("allow: ")).upper()
    assert "421 Misdirected" in curl("-i", "-H", "Host: evil.example", f"{server.url}/health").splitlines()[0]
    assert "401" in curl("-i", f"{server.url}/v1/models").splitlines()[0]
    assert curl("--http1.0", "-H", "Host:", f"{server.url}/health") == '{"status":"alive"}'  # as old probes ask
