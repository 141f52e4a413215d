"""The server under load, with clients that go away, and what it says of itself."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from modules.inference.server import lifecycle as connection
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder
from tests.helpers.server_tools import Served, send_and_keep, served, until

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Served]:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer) as running:
        yield running


@pytest.fixture
def slow(server: Served) -> Iterator[Served]:
    """Each token takes a while, and nothing runs before or afterwards."""
    until(lambda: not server.engine.running)
    server.pace.seconds = 0.02
    yield server
    server.pace.seconds = 0.0
    until(lambda: not server.engine.running and not server.engine.waiting)


# --- load, patience, and clients that go ---


def test_what_the_queue_cannot_hold_is_sent_away_at_once(tokenizer: Tokenizer) -> None:
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    with served(decoder, tokenizer, batch_rows=1, queue_rows=2, request_rows=2) as server:
        server.pace.seconds = 0.03
        answers: list[httpx.Response] = []
        body = {"prompt": "春", "max_tokens": 40, "seed": 1}
        threads = [threading.Thread(target=lambda: answers.append(server.complete(**body))) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(server.engine.waiting) == 2)
        refused = server.complete(prompt="山", max_tokens=40)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.json()["error"]["code"] == "overloaded"
        assert not answers  # it did not wait for anybody
        server.pace.seconds = 0.0
        for thread in threads:
            thread.join()
        expected = server.alone("春", max_new_tokens=40, seed=1)
        assert [answer.json()["choices"][0]["text"] for answer in answers] == [expected] * 3
        assert server.outcomes() == {"ok": 3, "overloaded": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_is_not_written_for(slow: Served, stream: bool) -> None:
    before = slow.outcomes().get("disconnected", 0)
    connection = send_and_keep(slow.url, "/v1/completions", {"prompt": "春", "max_tokens": 90, "stream": stream})
    until(lambda: slow.engine.running)
    (job,) = slow.engine.running.values()
    until(lambda: job.tokens >= 3)
    connection.close()
    until(lambda: job.cancelled)
    written = job.tokens
    until(lambda: not slow.engine.running)
    assert job.tokens <= written + 1
    assert job.tokens < 60
    until(lambda: slow.outcomes().get("disconnected", 0) == before + 1)
    assert slow.service.in_flight == 0


def test_a_client_that_goes_leaves_the_queue(tokenizer: Tokenizer) -> None:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer, batch_rows=1) as server:
        server.pace.seconds = 0.03
        first, second = (
            send_and_keep(server.url, "/v1/completions", {"prompt": "春", "max_tokens": 60}) for _ in range(2)
        )
        until(lambda: len(server.engine.waiting) == 1)
        second.close()
        until(lambda: not server.engine.waiting)
        assert server.engine.running
        first.close()


def test_who_takes_too_long_is_told(tokenizer: Tokenizer) -> None:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer, request_seconds=0.3) as server:
        server.pace.seconds = 0.03
        answer = server.complete(prompt="春", max_tokens=90)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert "limits.request_seconds" in answer.json()["error"]["message"]
        answer = server.complete(prompt="春", max_tokens=90, stream=True)
        lines = [line for line in answer.text.splitlines() if line]
        assert answer.status_code == 200
        assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["text"]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout"  # and no [DONE]
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="not done within"):
            list(client.completions.create(model="small", prompt="春", max_tokens=90, stream=True))
        until(lambda: not server.engine.running)
        until(lambda: server.outcomes() == {"timeout": 3})  # counted after the last byte is sent


def test_a_body_that_never_ends_is_not_waited_for(tokenizer: Tokenizer) -> None:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer, request_seconds=0.2) as server:
        connection = send_and_keep(server.url, "/v1/completions", {})  # refused; the connection stays
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 100\r\n\r\n{")
        received = b""
        while b"408" not in received:
            received += connection.recv(4096)
        connection.close()


@pytest.mark.parametrize("head", ["Transfer-Encoding: chunked", "Content-Length: 100000000"])
@pytest.mark.parametrize(("path", "status"), [("/v1/completions", b" 413 "), ("/health", b" 405 ")])
def test_the_rest_of_a_body_is_not_read_for_ever_after_its_answer(
    head: str, path: str, status: bytes, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWERED_SECONDS", 0.3)
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer, body_bytes=2000) as server:
        client = send_and_keep(server.url, path, {})
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{head}\r\n\r\n".encode()
        )
        client.settimeout(0.02)
        received, ended = b"", time.monotonic() + 20
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < ended:
                client.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
                with contextlib.suppress(TimeoutError):
                    received += client.recv(4096)
        assert time.monotonic() < ended
        assert status in received
        client.close()


def test_a_client_that_sends_all_before_it_reads_gets_its_answer_and_keeps_its_connection(server: Served) -> None:
    with httpx.Client(base_url=server.url) as client:
        for _ in range(2):
            body = {"content": b" " * 3_000_000, "headers": {"Content-Type": "application/json"}}
            assert client.post("/v1/completions", **body).status_code == 413  # type: ignore[arg-type]
            assert client.get("/health").status_code == 200


def test_connections_beyond_the_file_descriptors_are_refused_in_one_line(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer) as server, httpx.Client() as known:
        assert known.get(f"{server.url}/health").status_code == 200
        spare = os.open(os.devnull, os.O_RDONLY)
        os.close(spare)
        limit = spare + connection.FILES + 8  # 8 more than are open, which only the server sees
        monkeypatch.setattr(connection.resource, "getrlimit", lambda kind: (limit, limit))
        place = httpx.URL(server.url)
        clients = [socket.create_connection((place.host, place.port or 80), timeout=5) for _ in range(30)]
        answers = [client.recv(200) for client in clients[-8:]]
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in answers)
        assert known.get(f"{server.url}/health").status_code == 200
        for client in clients:
            client.close()
        monkeypatch.undo()
        assert httpx.get(f"{server.url}/health").status_code == 200
    assert [record.exc_info for record in caplog.records if record.name.startswith(("modules", "asyncio"))] == [None]


def test_an_idle_server_takes_as_many_as_it_has_places_and_queue(tokenizer: Tokenizer) -> None:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer, batch_rows=4, queue_rows=8) as server:
        server.pace.seconds = 0.05
        answers: list[int] = []
        body = {"prompt": ["春"] * 6, "max_tokens": 8}
        threads = [threading.Thread(target=lambda: answers.append(server.complete(**body).status_code)) for _ in "12"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200, 200]


def test_an_idle_server_takes_one_request_for_each_place(tokenizer: Tokenizer) -> None:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer) as server:
        server.pace.seconds = 0.02
        most = server.service.limits.batch_rows + server.service.limits.queue_rows
        body = {"prompt": "春", "max_tokens": 20, "seed": 1}
        with ThreadPoolExecutor(most) as pool:
            statuses = list(pool.map(lambda _: server.complete(**body).status_code, range(most)))
        assert statuses == [200] * most


def test_headers_that_never_end_are_not_waited_for(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a new connection, a silent one, and one that has been used; a byte now and then changes nothing."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer) as server:
        place = httpx.URL(server.url)
        clients = [socket.create_connection((place.host, place.port or 80), timeout=5) for _ in range(3)]
        clients[2].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while b"alive" not in answer:
            answer += clients[2].recv(4096)
        for slow in (clients[0], clients[2]):
            slow.sendall(b"GET /health HTTP/1.1\r\n")
        for _ in range(3):
            clients[0].sendall(b"X")
            time.sleep(0.05)
        assert [client.recv(4096) for client in clients] == [b"", b"", b""]
        for client in clients:
            client.close()


def test_a_slow_answer_outlasts_the_wait_for_headers(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.05)
    monkeypatch.setattr(server.pace, "seconds", 0.02)
    with httpx.Client(base_url=server.url) as client:
        for _ in range(2):
            body = {"prompt": "春", "max_tokens": 20, "seed": 1}
            assert client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] >= 5


def test_a_failing_model_is_a_500_of_one_line_and_the_next_request_is_served(server: Served) -> None:
    server.pace.fail = True
    answer = server.complete(prompt="春", max_tokens=5)
    server.pace.fail = False
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the model failed on this request; the server's log says why"
    assert server.complete(prompt="春", max_tokens=5).status_code == 200


# --- what watches the server ---


def test_ready_says_whether_requests_are_taken(server: Served) -> None:
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
    server.service.state = "draining"
    try:
        for path in ("/ready", "/ping"):
            assert httpx.get(f"{server.url}{path}").status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 200
        refused = server.complete(prompt="春")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert server.post("/invocations", {}).json()["error_code"] == "TEMPORARILY_UNAVAILABLE"
    finally:
        server.service.state = "ready"


def test_metrics_count_what_happened(slow: Served) -> None:
    def value(name: str) -> float:
        lines = httpx.get(f"{slow.url}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    names = ('moyun_requests_total{endpoint="completions",outcome="ok"}', "moyun_generated_tokens_total")
    names += ("moyun_time_to_first_token_seconds_count", 'moyun_request_seconds_count{endpoint="completions"}')
    before = [value(name) for name in names]
    connection = send_and_keep(slow.url, "/v1/completions", {"prompt": "山", "max_tokens": 90})
    until(lambda: slow.engine.running)
    assert value("moyun_running_rows") == 1
    assert value("moyun_queue_rows") == 0
    connection.close()
    until(lambda: not slow.engine.running)
    middle = [value(name) for name in names]
    used = slow.complete(prompt="春", max_tokens=7, seed=1).json()["usage"]
    after = [value(name) for name in names]
    assert [b - a for a, b in zip(middle, after, strict=True)] == [1, used["completion_tokens"], 1, 1]
    assert middle[0] == before[0]  # a client that went got no answer
