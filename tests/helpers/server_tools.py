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
from collections.abc import Callable, Iterator
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


@contextmanager
def served(
    decoder: Decoder,
    tokenizer: Tokenizer,
    name: str = "small",
    access: Access | None = None,
    port: int = 0,
    **limits: Any,
) -> Iterator[Served]:
    """The whole server but for its process: signals are the business of lifecycle's own tests."""
    loop = asyncio.new_event_loop()
    service = Service(name, LimitsConfig(**limits), access)
    pace = Pace()
    generator = TextGenerator(decoder, tokenizer)
    hook = decoder.register_forward_pre_hook(pace)
    engine = Engine(decoder, tokenizer, service.limits, service.metrics, loop.call_soon_threadsafe)
    listener = listen("127.0.0.1", port)
    options: dict[str, Any] = {"http": Connection, "log_config": None, "log_level": "critical", "lifespan": "off"}
    server = QuietServer(uvicorn.Config(create_app(service), **options))
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(sockets=[listener]),))
    engine.start()
    thread.start()
    try:
        service.serve_with(engine, tokenizer)
        yield Served(address_of(listener), service, engine, pace, generator)
    finally:
        engine.stop()
        server.should_exit = server.force_exit = True
        thread.join()
        loop.close()
        hook.remove()


def until(happened: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def send_and_keep(url: str, path: str, body: Any) -> socket.socket:
    """A request whose connection stays open, to be closed when the test likes."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    client = socket.create_connection((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
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
