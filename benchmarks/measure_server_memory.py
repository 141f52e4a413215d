"""What a real server's two processes hold while thousands of requests go through them, printed as a table.

python -m benchmarks.measure_server_memory [requests] [server's arguments]   a model of size tiny with random weights

Requests are unlike one another: 500 prompts of 1 to 60 characters of poems, 1 to 8 new tokens, a stream one in four, of
which every other client goes after the first piece. The exit code is 1 where, after the first half of them, in which
caches fill, a process grows by more than a promised share. Prompts come again because the tokenizer keeps 10,000 words
that it has cut, about 1 KB each: with ever new ones the server's process grows by 20 MB, and then no more.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.serving_clients import Server, completion_request, make_model
from modules.system.jsonl import read_jsonl
from tests.helpers.models import ROOT

CLIENTS = 16
PARTS = 10
"""How often memory is looked at."""
FILLED = 5
"""Parts after which caches are full."""
PROMPTS = 500
GROWTH = 0.03
"""Promised: no process grows by more than this share after that."""


class Asker:
    """Sends requests drawn at random."""

    def __init__(self, server: Server) -> None:
        self.server, self.random = server, random.Random(0)
        texts = [row["src_txt"] for row in read_jsonl(ROOT / "data" / "poems-300.jsonl.gz")]
        self.prompts = [self.random.choice(texts)[: self.random.randint(1, 60)] for _ in range(PROMPTS)]

    async def ask(self) -> None:
        prompt, tokens = self.random.choice(self.prompts), self.random.randint(1, 8)
        if self.random.random() < 0.75:
            status, _ = await self.server.exchange(completion_request(prompt=prompt, max_tokens=tokens))
            assert status == 200, status
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(completion_request(prompt=prompt, max_tokens=tokens, stream=True))
        await reader.readuntil(b"data: {" if self.random.random() < 0.5 else b"[DONE]")
        writer.transport.abort()

    async def ask_many(self, count: int) -> None:
        left = iter(range(count))

        async def client() -> None:
            for _ in left:
                await self.ask()

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        await self.server.idle()


def resident(server: Server) -> tuple[float, float]:
    """MB of the server's process and of the model's."""
    process = psutil.Process(server.process.pid)
    return process.memory_info().rss / 1e6, sum(child.memory_info().rss for child in process.children()) / 1e6


async def measure(server: Server, requests: int) -> list[tuple[float, float]]:
    asker, found = Asker(server), [resident(server)]
    print(f"  {'requests':>8}  {'server, MB':>10}  {'model, MB':>10}", flush=True)
    for part in range(PARTS + 1):
        if part:
            await asker.ask_many(requests // PARTS)
            found.append(resident(server))
        print(f"  {part * (requests // PARTS):>8,}  {found[-1][0]:>10.1f}  {found[-1][1]:>10.1f}", flush=True)
    return found


def main(requests: str = "10000", *arguments: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(make_model(Path(folder), "tiny"), *arguments)
        try:
            found = asyncio.run(measure(server, int(requests)))
        finally:
            server.process.terminate()
            server.process.wait()
    return told(found)


def told(found: Sequence[tuple[float, float]]) -> int:
    code = 0
    for name, sizes in zip(("server", "model"), zip(*found, strict=True), strict=True):
        growth = sizes[-1] / sizes[FILLED] - 1
        kept = growth <= GROWTH
        print(f"{'' if kept else 'NOT KEPT: '}{name}'s process after the first half: {growth:+.1%} (≤ {GROWTH:.0%})")
        code |= not kept
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
