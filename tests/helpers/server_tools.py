"""What the server's tests share: a real uvicorn on 127.0.0.1 in a thread, with a decoder that can be slowed down."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from modules.config.generation import LimitsConfig
from modules.inference.server.access import Access
from modules.inference.server.app import Service, create_app
from modules.inference.server.engine import Engine
from modules.inference.server.lifecycle import Connection, QuietServer, address_of, listen
from modules.inference.server.model_process.child import Desk, ready
from modules.inference.server.model_process.messages import Setup, messages_of
from modules.inference.server.model_process.model_client import ModelClient
from modules.inference.server.model_process.served_model import ServedModel
from modules.inference.server.records.ratings import Rating
from modules.inference.server.records.transcript import AnswerRecord
from modules.inference.server.requests import RequestError
from modules.inference.text_generator import TextGenerator
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import ROOT, make_config, make_decoder, save_model


@dataclass
class Pace:
    """A forward hook: counts the passes, and makes each take a while or fail."""

    seconds: float = 0.0
    fail: bool = False
    passes: int = 0
    rows: list[int] = field(default_factory=list)
    """How many tokens went in, a pass."""

    def __call__(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self.passes += 1
        self.rows.append(inputs[0].numel())
        if self.fail:
            raise RuntimeError("a kernel failed, says the test")
        time.sleep(self.seconds)


@dataclass
class Served:
    url: str
    service: Service
    engine: Engine
    pace: Pace
    generator: TextGenerator
    """The same model without a server."""

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, **options)

    def complete(self, **body: Any) -> httpx.Response:
        return self.post("/v1/completions", body)

    def alone(self, prompt: str, **parameters: Any) -> str:
        text: str = self.generator(prompt, return_full_text=False, **parameters)["text"]
        return text

    def outcomes(self, endpoint: str = "completions") -> dict[str, float]:
        """How many requests ended how."""
        samples = next(iter(self.service.metrics.requests.collect())).samples
        return {
            sample.labels["outcome"]: sample.value
            for sample in samples
            if sample.name.endswith("_total") and sample.labels["endpoint"] == endpoint
        }


class EngineInProcess:
    """What the model's process does, in a thread of this one, so that a test can look into it."""

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, service: Service, run: Mapping[str, Any] | None = None
    ) -> None:
        self.service, self.tokenizer = service, tokenizer
        self.ours, theirs = socket.socketpair()
        self.desk = Desk(theirs)
        setup = Setup(Path(service.name), "auto", service.name, service.limits)
        self.engine = self.desk.open(decoder, tokenizer, setup)
        self.ready = ready(Path(service.name), decoder, tokenizer, setup, run or {})
        self.listening = threading.Thread(target=self.desk.listen, args=(messages_of(theirs),))
        self.engine.start()
        self.listening.start()

    async def serve(self) -> None:
        """On the server's event loop."""
        client = ModelClient(self.service.limits, self.service.metrics)
        await asyncio.get_running_loop().create_unix_connection(lambda: client, sock=self.ours)
        positions, facts = self.ready.positions, self.ready.facts
        self.model = ServedModel(client, self.tokenizer, positions, self.service.limits, facts)
        self.service.serve_with(self.model)

    async def stop(self) -> None:
        self.model.client.transport.abort()
        await asyncio.to_thread(self.listening.join)
        await asyncio.to_thread(self.engine.stop)
        self.desk.connection.close()


class Notebook:
    """A Recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[AnswerRecord] = []
        self.ratings: list[Rating] = []
        self.refusal: RequestError | None = None

    def answered(self, record: AnswerRecord) -> None:
        self.records.append(record)

    def rate(self, rating: Rating) -> None:
        if self.refusal:
            raise self.refusal
        self.ratings.append(rating)


@contextmanager
def served(
    decoder: Decoder,
    tokenizer: Tokenizer,
    name: str = "small",
    access: Access | None = None,
    port: int = 0,
    run: Mapping[str, Any] | None = None,
    **limits: Any,
) -> Iterator[Served]:
    """The whole server but for its processes: they and signals are the business of lifecycle's own tests.

    run: how the model was made (read_provenance), for the card.
    """
    loop = asyncio.new_event_loop()
    service = Service(name, LimitsConfig(**limits), access)
    pace = Pace()
    generator = TextGenerator(decoder, tokenizer)
    hook = decoder.register_forward_pre_hook(pace)
    model = EngineInProcess(decoder, tokenizer, service, run)
    listener = listen("127.0.0.1", port)
    options: dict[str, Any] = {"http": Connection, "log_config": None, "log_level": "critical", "lifespan": "off"}
    server = QuietServer(uvicorn.Config(create_app(service), **options))
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(sockets=[listener]),))
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(model.serve(), loop).result()
        yield Served(address_of(listener), service, model.engine, pace, generator)
    finally:
        asyncio.run_coroutine_threadsafe(model.stop(), loop).result()
        server.should_exit = server.force_exit = True
        thread.join()
        loop.close()
        hook.remove()


def until(happened: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def send_and_keep(url: str, path: str, body: Any, headers: Mapping[str, str] | None = None) -> socket.socket:
    """A request whose connection stays open, to be closed when the test likes."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    client = socket.create_connection((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    head += "".join(f"\r\n{name}: {value}" for name, value in (headers or {}).items())
    client.sendall(head.encode() + b"\r\n\r\n" + content)
    return client


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


@dataclass
class RealServer:
    """`python -m pipelines.serve` of a model called poet, which asks for an API key."""

    url: str
    key: str
    generator: TextGenerator
    """The same model without a server."""

    def answer(self, text: str, **parameters: Any) -> str:
        found: str = self.generator(text, return_full_text=False, **parameters)["text"]
        return found


@contextmanager
def real_server(folder: Path, tokenizer: Tokenizer, key: str = "c4n4ry-k3y") -> Iterator[RealServer]:
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    model = save_model(folder / "model", decoder, tokenizer, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOYUN_API_KEY", key)
        with process(model, folder / "log", "name=poet") as started:
            yield RealServer(address_in(started), key, TextGenerator(decoder, tokenizer))
