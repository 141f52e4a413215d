"""Timing, the same for everybody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def timed_steps(steps: Iterable[tuple[Any, int]], step: Callable[[Any], object], warmup: int) -> dict[str, Any]:
    """Tokens a second over all (batch, trained tokens) after the first `warmup`; the batches' making counts too."""
    first_ended: float | None = None
    tokens = 0
    count = 0
    begun = time.perf_counter()
    for number, (batch, trained) in enumerate(steps):
        step(batch)
        first_ended = first_ended or time.time()
        if number < warmup:
            begun = time.perf_counter()
            continue
        tokens += trained
        count += 1
    seconds = time.perf_counter() - begun
    return {
        "value": tokens / seconds,
        "step_seconds": seconds / count,
        "first_step_at": first_ended,
        "ended_at": time.time(),
    }


def timed_call(call: Callable[[], object], amount: float) -> dict[str, Any]:
    """Of `amount` (tokens, megabytes) so many a second, in a call after one that doesn't count."""
    call()
    begun = time.perf_counter()
    call()
    return {"value": amount / (time.perf_counter() - begun), "ended_at": time.time()}


def interleaved(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each call, taken in turns, after a round that doesn't count."""
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, found in zip(calls, seconds, strict=True):
            begun = time.perf_counter()
            call()
            if number:
                found.append(time.perf_counter() - begun)
    return seconds
