"""A real server in a process of its own, the model that it serves, and clients that ask it, alone or many at once."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from benchmarks.config import BenchmarkConfig
from modules.checkpoint.model_folder import write_model
from modules.config.loader import load_config
from modules.model.decoder import fresh_tensors
from modules.system.jsonl import read_jsonl
from modules.tokenizer.tokenizer import train_tokenizer
from tests.helpers.models import ROOT

NEW_TOKENS = 32
REQUEST = {"prompt": "白日依山尽，", "max_tokens": NEW_TOKENS, "temperature": 1.0, "seed": 1}
MOST_REQUESTS = 40_000

T = TypeVar("T")
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Answer:
    status: int
    """0: none came."""
    seconds: float
    ended: float
    """On time.perf_counter's clock."""


class Server:
    """`python -m pipelines.serve` on a free port."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "pipelines.serve", f"model={folder}", "port=0", "name=measured", *arguments]
        self.connections: list[Connection] = []
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        for line in self.process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                self.port = int(found[1])
                return
        sys.exit(f"the server didn't start: exit code {self.process.wait()}")

    async def get(self, path: str) -> tuple[int, bytes]:
        return await self.exchange(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    async def ask(self) -> Answer:
        started = time.perf_counter()
        try:
            status, _ = await self.exchange(completion_request())
        except (OSError, EOFError):
            status = 0
        ended = time.perf_counter()
        return Answer(status, ended - started, ended)

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Status and body, by a connection that is kept as clients keep theirs."""
        while self.connections:
            reader, writer = self.connections.pop()
            if not reader.at_eof():
                break
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length
            body = await reader.readexactly(int(length[1]))
        except BaseException:
            writer.transport.abort()
            raise
        self.connections.append((reader, writer))
        return int(head[9:12]), body

    async def first_token(self) -> float:
        """Seconds from a request to the first piece of its text."""
        started = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(completion_request(stream=True))
        await reader.readuntil(b"data: {")
        seconds = time.perf_counter() - started
        await reader.readuntil(b"[DONE]")
        writer.close()
        return seconds

    async def ask_until_served(self) -> Answer:
        """Refusals count as waiting."""
        started = time.perf_counter()
        while (answer := await self.ask()).status == 503:
            await asyncio.sleep(0.005)
        return Answer(answer.status, answer.ended - started, answer.ended)

    async def work(self) -> tuple[float, float]:
        """Tokens written so far, and processor seconds used: what other processes take doesn't change their ratio."""
        server = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in (server, *server.children())]
        return await self.metric("moyun_generated_tokens_total"), sum(each.user + each.system for each in times)

    async def metric(self, name: str) -> float:
        _, text = await self.get("/metrics")
        found = re.search(rf"^{name} ([\d.e+]+)$", text.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def idle(self) -> None:
        while await self.metric("moyun_running_rows") + await self.metric("moyun_queue_rows"):
            await asyncio.sleep(0.01)


def completion_request(**others: Any) -> bytes:
    body = json.dumps(REQUEST | others).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def unloaded(server: Server, count: int = 20) -> list[float]:
    return [(await server.ask()).seconds for _ in range(count)]


async def closed_loop(server: Server, clients: int, seconds: float) -> float:
    """Requests a second that `clients` get answered who each ask again as soon as they have an answer."""
    end = time.perf_counter() + seconds
    answers: list[Answer] = []

    async def client() -> None:
        while time.perf_counter() < end:
            answers.append(await server.ask())

    await asyncio.gather(*(client() for _ in range(clients)))
    return sum(answer.status == 200 and answer.ended <= end for answer in answers) / seconds


async def open_loop(ask: Callable[[], Awaitable[T]], rate: float, seconds: float) -> list[asyncio.Task[T]]:
    """Requests at a steady rate, whatever becomes of those before."""
    tasks: list[asyncio.Task[T]] = []
    started = time.perf_counter()
    for number in range(min(int(rate * seconds), MOST_REQUESTS)):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(ask()))  # type: ignore[arg-type]
    return tasks


def make_model(folder: Path, size: str) -> Path:
    tokenizer = train_tokenizer(row["src_txt"] for row in read_jsonl(ROOT / "data" / "poems-300.jsonl.gz"))
    sizes: BenchmarkConfig = load_config("benchmark", [f"model={size}"])
    config = sizes.model
    config.vocab_size = tokenizer.vocab_size
    return write_model(folder / size, config, fresh_tensors(config, seed=0), tokenizer, {})
