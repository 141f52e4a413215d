"""Continuous batching: one thread owns the decoder and writes all texts in one batch that rows join and leave.

Between two tokens the batch may change: ended rows have left it, waiting prompts are read (prefill) and join the
cache of those that run (Yu et al. 2022, Orca, "iteration-level scheduling"). What a row becomes is
generation.write's business and depends on its prompt, parameters and seed alone.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ...config.generation import GenerationConfig, LimitsConfig
from ...model.decoder import Decoder
from ...model.kv_cache import KVCache
from ...model.sampling import Rows, decode_step, prefill, start, write
from ...tokenizer.tokenizer import Tokenizer
from ..text_generator import Writer
from .prometheus import Metrics

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 2048
"""The most prompt tokens read between two tokens of the running rows, which wait; one prompt may have more."""

FinishReason = Literal["stop", "length", "failed", "stopped"]
"""OpenAI's two; failed: the model did; stopped: the row was cancelled, or the engine is going down."""


@dataclass(frozen=True)
class Event:
    """A piece of a job's text, or its end."""

    row: int
    """Which prompt of its request."""
    text: str
    finish: FinishReason | None = None
    """Why the text ended; None where it goes on."""


@dataclass(eq=False)
class ActiveSequence:
    """One prompt on its way to a text. Made by the event loop, then the engine's thread's alone but for `cancelled`."""

    row: int
    prompt: list[int]
    config: GenerationConfig
    writer: Writer
    stream: bool
    """Whether pieces are wanted as they come; otherwise the whole text at its end."""
    deliver: Callable[[Event], None]
    """Called on the event loop."""
    arrived: float = field(default_factory=time.monotonic)
    tokens: int = 0
    """Written so far."""
    pieces: list[str] = field(default_factory=list)
    """What was written and not yet handed over."""
    cancelled: bool = False
    """Set from any thread: whoever asked has gone or waited too long."""


Outbox = dict[ActiveSequence, Event]
"""What has become of jobs since the event loop was last told."""


class QueueFullError(Exception):
    """The queue is full."""


class Engine:
    """submit and cancel from any thread; `post` must hand a function and its argument to the event loop."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        limits: LimitsConfig,
        metrics: Metrics,
        post: Callable[[Callable[[Outbox], None], Outbox], object],
    ) -> None:
        self.decoder, self.tokenizer, self.limits, self.metrics, self.post = decoder, tokenizer, limits, metrics, post
        self.waiting: deque[ActiveSequence] = deque()
        self.running: dict[int, ActiveSequence] = {}
        self.changed = threading.Condition()
        self.stopping = False
        self.numbers = itertools.count()
        self.outbox: Outbox = {}
        self.delivered = True
        """Whether the event loop has taken what it was handed last."""
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    # --- any thread ---

    def has_room(self, rows: int = 1) -> bool:
        return len(self.waiting) + rows <= self.limits.queue_rows

    def submit(self, jobs: Sequence[ActiveSequence]) -> None:
        """Raises QueueFullError where the queue has no room for all of them."""
        with self.changed:
            if self.stopping or not self.has_room(len(jobs)):
                raise QueueFullError
            self.waiting.extend(jobs)
            self.changed.notify()

    def cancel(self, jobs: Sequence[ActiveSequence]) -> None:
        """Running rows end with the token that is being computed, waiting ones leave the queue at once."""
        with self.changed:
            for job in jobs:
                job.cancelled = True
                if job in self.waiting:
                    self.waiting.remove(job)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Ends every row and the thread."""
        with self.changed:
            self.stopping = True
            for job in [*self.waiting, *self.running.values()]:
                job.cancelled = True
            self.post(self.deliver, {job: Event(job.row, "", "stopped") for job in self.waiting})
            self.waiting.clear()
            self.changed.notify()
        if self.thread.ident:
            self.thread.join()

    # --- the engine's own thread ---

    @torch.no_grad()
    def run(self) -> None:
        while jobs := self.next_jobs(self.limits.batch_rows, wait=True):
            try:
                self.write_batch(jobs)
            except Exception:  # of these rows nothing can be saved; the next must not suffer for it
                logger.exception("the model failed on a batch of %d rows", len(self.running))
                self.outbox |= {job: Event(job.row, "", "failed") for job in self.running.values()}
            self.running.clear()
            self.post(self.deliver, self.outbox)
            self.outbox = {}

    def next_jobs(self, places: int, wait: bool = False) -> list[ActiveSequence]:
        """Waiting jobs to start now; with `wait` there is at least one, or the engine stops."""
        jobs: list[ActiveSequence] = []
        tokens = 0
        with self.changed:
            while wait and not self.waiting and not self.stopping:
                self.changed.wait()
            while self.waiting and len(jobs) < places:
                tokens += len(self.waiting[0].prompt)
                if jobs and tokens > PREFILL_TOKENS:
                    break
                jobs.append(self.waiting.popleft())
        return jobs

    def write_batch(self, jobs: list[ActiveSequence]) -> None:
        """Writes these and all that join them meanwhile, until no row is left."""
        rows, logits, cache = self.begin(jobs, joining=False)
        tokens = write(rows, logits, partial(self.advance, cache), self.tokenizer.end_of_text_id)
        reply: int | None = None
        while True:
            try:
                number, token = tokens.send(reply)
            except StopIteration:
                return
            reply = number if self.take(number, token) else None

    def begin(self, jobs: list[ActiveSequence], joining: bool) -> tuple[Rows, Tensor, KVCache]:
        """Reads the prompts, into a cache that has room for what they become unless it is to join another."""
        prompts = [job.prompt for job in jobs]
        numbers = [next(self.numbers) for _ in jobs]
        self.running.update(zip(numbers, jobs, strict=True))
        rows = start(self.decoder, prompts, [job.config for job in jobs])
        rows.numbers = numbers
        capacity = max(map(len, prompts)) if joining else rows.capacity
        cache = KVCache(len(jobs), capacity, self.decoder.word_embeddings.weight.device)
        return rows, prefill(self.decoder, prompts, cache), cache

    def advance(self, cache: KVCache, rows: Rows, left: list[int]) -> Tensor:
        """generation.write's `advance`: the next logits of the rows left, and the first of those that join them."""
        self.flush()
        logits = decode_step(self.decoder, cache, rows, left)
        jobs = self.next_jobs(self.limits.batch_rows - len(left))
        if not jobs:
            return logits
        others, first, joining = self.begin(jobs, joining=True)
        rows.extend(others)
        cache.merge(joining, rows.capacity)
        return torch.cat([logits, first])

    def take(self, number: int, token: int | None) -> bool:
        """What the batch has written of a row; true where the row is to end."""
        job = self.running[number]
        if token is None:
            del self.running[number]
            job.pieces.append(job.writer.flush())
            finish = finish_of(job, self.decoder.config.max_position_embeddings)
            self.outbox[job] = Event(job.row, "".join(job.pieces), finish)
            return False
        job.tokens += 1
        self.metrics.generated_tokens.inc()
        if job.tokens == 1:
            self.metrics.first_token_seconds.observe(time.monotonic() - job.arrived)
        if job.cancelled:
            return True
        if text := job.writer.push(token):
            job.pieces.append(text)
            if job.stream:
                self.outbox[job] = Event(job.row, "".join(job.pieces))
        return job.writer.stopped

    def flush(self) -> None:
        """Hands over what was written since the last time: once a step at most, for each wakes the event loop up.

        While the loop is behind, pieces gather: a stream then gets several tokens at once, and the loop catches up.
        """
        if self.outbox and self.delivered:
            for job in self.outbox:
                job.pieces.clear()
            self.delivered = False
            self.post(self.deliver, self.outbox)
            self.outbox = {}

    def deliver(self, outbox: Outbox) -> None:
        """On the event loop."""
        for job, event in outbox.items():
            job.deliver(event)
        self.delivered = True


def finish_of(job: ActiveSequence, positions: int) -> FinishReason:
    """length: it wrote all it might; stop: it ended by itself or at a stop text."""
    if job.cancelled:
        return "stopped"
    most = min(job.config.max_new_tokens, positions - len(job.prompt))
    return "length" if job.tokens == most and not job.writer.stopped else "stop"
