"""A real server under load on this machine, printed as a table: what docs/serving.md promises, measured.

python -m benchmarks.measure_serving [model] [seconds of overload] [keys of pipelines.serve, as traces=1]
model: a size (conf/model), random weights

The exit code is 1 where a promise is broken. Requests are the same work each: a prompt of 6 characters, 32 new tokens,
which random weights never end early.
Clients are this process's, so they take some of the processor that the server could have.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.serving_clients import (
    NEW_TOKENS,
    REQUEST,
    Server,
    closed_loop,
    completion_request,
    make_model,
    open_loop,
    unloaded,
)
from pipelines import pipeline

BATCH = 16
ROUNDS = 8
"""Of requests at once and a batch, in turn; the first isn't counted."""
REFUSAL_SECONDS = 0.05
"""Promised: the 99th percentile of a 503."""
GOODPUT = 0.9
"""Promised: under four times the capacity, as a share of it."""
FIRST_TOKEN = 1.3
"""Promised: the median time to a stream's first token under half the capacity, as a multiple of that alone."""
TOGETHER = 0.97
"""Promised: 16 requests at once, as a share of what pipeline() writes of 16 prompts in the same time."""
RECOVERY = 2.0
"""Promised: the next request after a burst, as a multiple of the unloaded 95th percentile."""
broken: list[str] = []
"""Promises that weren't kept."""


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def per_second(before: tuple[float, float], after: tuple[float, float]) -> str:
    return f"{(after[0] - before[0]) / (after[1] - before[1]):.0f}"


def show(what: str, value: str) -> None:
    print(f"  {what:<58} {value}", flush=True)


def promise(kept: bool, what: str) -> None:
    if not kept:
        broken.append(what)


async def first_tokens(server: Server, capacity: float, seconds: float) -> None:
    """Of streams alone, and of streams beside half the requests that the server can do."""
    alone = quantile([await server.first_token() for _ in range(20)], 0.5)
    load = asyncio.create_task(open_loop(server.ask, capacity / 2, seconds))
    await asyncio.sleep(1.0)
    found = []
    while not load.done():
        found.append(await server.first_token())
        await asyncio.sleep(0.1)
    await asyncio.gather(*await load)
    loaded = quantile(found, 0.5)
    promise(
        loaded <= FIRST_TOKEN * alone, f"first token at half load within {FIRST_TOKEN} x alone: {loaded / alone:.2f} x"
    )
    show("first token alone: p50", f"{1000 * alone:.1f} ms")
    show(
        "  at half the capacity: p50, p99 (p50 promised ≤ 1.3 × alone)",
        f"{1000 * loaded:.1f} ms, {1000 * quantile(found, 0.99):.1f} ms; {loaded / alone:.2f} ×",
    )


async def overload(server: Server, capacity: float, seconds: float, p95: float) -> None:
    started = time.perf_counter()
    before = await server.work()
    tasks = await open_loop(server.ask, 4 * capacity, seconds)
    sent = time.perf_counter()
    after = await server.work()
    answers = await asyncio.gather(*tasks)
    following = await server.ask_until_served()
    shed = [answer.seconds for answer in answers if answer.status == 503]
    good = [answer for answer in answers if answer.status == 200]
    others = sorted({answer.status for answer in answers} - {200, 503})
    goodput = len([answer for answer in good if answer.ended <= sent]) / (sent - started)
    p99, recovery = quantile(shed, 0.99), following.seconds / p95
    promise(p99 < REFUSAL_SECONDS, f"a 503 within {1000 * REFUSAL_SECONDS:.0f} ms (p99): {1000 * p99:.0f} ms")
    promise(not others, f"nothing but 200 and 503: {others}")
    promise(goodput >= GOODPUT * capacity, f"goodput of {GOODPUT} of capacity: {goodput / capacity:.2f}")
    promise(recovery <= RECOVERY, f"the next request within {RECOVERY:g} x the unloaded p95: {recovery:.2f} x")
    show("overload: requests, a second", f"{len(answers):,}, {len(answers) / (sent - started):.1f}")
    show("  answered 200, 503, anything else", f"{len(good):,}, {len(shed):,}, {others or 'none'}")
    show("  503: p50, p99, slowest", ", ".join(f"{1000 * quantile(shed, share):.1f} ms" for share in (0.5, 0.99, 1)))
    show("  200: p50, p99", ", ".join(f"{quantile([a.seconds for a in good], share):.2f} s" for share in (0.5, 0.99)))
    show("  goodput, as a share of capacity (promised ≥ 0.9)", f"{goodput:.1f}/s, {goodput / capacity:.2f}")
    show("  tokens a second of the server's processor time", per_second(before, after))
    show(
        "  next request after the last answer (≤ 2 × unloaded p95)",
        f"{following.seconds:.3f} s, {following.seconds / p95:.2f} ×",
    )
    tasks = await open_loop(server.ask, 4 * capacity, min(seconds, 5.0))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    following = await server.ask_until_served()
    recovery = following.seconds / p95
    promise(recovery <= RECOVERY, f"the same after clients hang up: {recovery:.2f} x")
    show(
        "  next request after all of a burst's clients hang up",
        f"{following.seconds:.3f} s, {following.seconds / p95:.2f} ×",
    )


async def hang_up(server: Server, clients: int = 8, events: int = 5) -> None:
    """Streams whose readers go after some tokens: what is written after that."""
    await server.idle()
    before = await server.metric("moyun_generated_tokens_total")
    readers = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(clients)]
    for _, writer in readers:
        writer.write(completion_request(stream=True))
    for reader, _ in readers:
        for _ in range(events):
            await reader.readuntil(b"data: {")
    written = await server.metric("moyun_generated_tokens_total")
    for _, writer in readers:
        writer.transport.abort()
    await server.idle()
    wasted = await server.metric("moyun_generated_tokens_total") - written
    promise(wasted <= 2 * clients, f"a text nobody reads stops within a token: {wasted:.0f} of {clients} texts")
    show(
        f"tokens of {clients} streams after all readers went, of {clients * NEW_TOKENS}",
        f"{wasted:.0f} ({written - before:.0f} before)",
    )


async def terminate(server: Server) -> None:
    """SIGTERM with requests in flight."""
    tasks = [asyncio.create_task(server.ask()) for _ in range(BATCH)]
    while await server.metric("moyun_running_rows") < BATCH / 2:
        await asyncio.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    started = time.perf_counter()
    status = 200
    while status == 200:
        status, _ = await server.get("/ready")
    not_ready = time.perf_counter() - started
    answers = await asyncio.gather(*tasks)
    code = await asyncio.to_thread(server.process.wait)
    promise(
        code == 0 and all(answer.status == 200 for answer in answers), "after SIGTERM all that was accepted is done"
    )
    show("SIGTERM: /ready says no after", f"{1000 * not_ready:.0f} ms (status {status})")
    show("  requests in flight, finished", f"{len(answers)}, {sum(answer.status == 200 for answer in answers)}")
    show("  exit code, seconds", f"{code}, {time.perf_counter() - started:.2f}")


async def concurrent_rate(server: Server) -> float:
    """Tokens a second of 16 requests at once."""
    started = time.perf_counter()
    await asyncio.gather(*(server.ask() for _ in range(BATCH)))
    return BATCH * NEW_TOKENS / (time.perf_counter() - started)


async def against_pipeline(server: Server, folder: Path) -> None:
    """16 requests at once and a batch of 16, in turn: what slows one round down slows its neighbour too."""
    generator = pipeline("text-generation", model=str(folder))
    prompts = [REQUEST["prompt"]] * BATCH
    pairs = []
    for _ in range(ROUNDS):
        requests = await concurrent_rate(server)
        started = time.perf_counter()
        generator(prompts, max_new_tokens=NEW_TOKENS, temperature=1.0, seed=1)
        pairs.append((requests, BATCH * NEW_TOKENS / (time.perf_counter() - started)))
    requests, batch = (quantile(list(rates), 0.5) for rates in zip(*pairs[1:], strict=True))  # the first compiles
    share = quantile([one / other for one, other in pairs[1:]], 0.5)
    promise(share >= TOGETHER, f"16 requests at once as fast as a batch of 16: {share:.2f}")
    show("16 requests at once; pipeline() with 16 prompts (p50)", f"{requests:.0f}, {batch:.0f} tokens/s; {share:.2f}")


async def measure(server: Server, folder: Path, seconds: float) -> None:
    await concurrent_rate(server)
    alone = await unloaded(server)
    p95 = quantile(alone, 0.95)
    show("unloaded: p50, p95", f"{quantile(alone, 0.5):.3f} s, {p95:.3f} s")
    await against_pipeline(server, folder)
    before = await server.work()
    capacity = await closed_loop(server, 2 * BATCH, max(2.0, seconds / 4))
    used = per_second(before, await server.work())
    show(
        "capacity (32 clients who ask again at once)",
        f"{capacity:.1f} requests/s, {capacity * NEW_TOKENS:.0f} tokens/s",
    )
    show("  tokens a second of the server's processor time", used)
    await first_tokens(server, capacity, max(2.0, seconds / 4))
    await overload(server, capacity, seconds, p95)
    await hang_up(server)
    await terminate(server)


def main(size: str = "tiny", seconds: str = "60", *keys: str) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = make_model(Path(name), size)
        server = Server(folder, *keys)
        print(f"{size}, {NEW_TOKENS} new tokens a request, {os.cpu_count()} cores", flush=True)
        try:
            asyncio.run(measure(server, folder, float(seconds)))
        finally:
            server.process.kill()
    for what in broken:
        print(f"NOT KEPT: {what}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
