"""The server's side of the model's process: hands it prompts, gives each request what is written of its texts.

All of it on the event loop. It knows by itself how many rows are under way, so that a refusal asks nobody.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ....config.generation import LimitsConfig
from ..prometheus import Metrics
from .messages import Cancel, Event, FinishReason, Ping, Prompt, Unpacker, Write, Written, packed

UNREAD_BYTES = 2**20
"""What may wait for the model's process to read it: it reads at once unless it hangs."""


class QueueFullError(Exception):
    """Batch and queue are full."""


@dataclass
class Row:
    """A sequence that the model's process has and hasn't ended."""

    index: int
    """Which text of its request."""
    deliver: Callable[[Event], None]
    asker: str | None
    """The name of the API key that asks."""
    arrived: float = field(default_factory=time.monotonic)
    begun: bool = False
    """Whether it is in the batch."""
    tokens: int = 0


class ModelClient(asyncio.Protocol):
    """One model's process, to write texts with. `told` gets what it says beside them, at last None."""

    def __init__(
        self, limits: LimitsConfig, metrics: Metrics, told: Callable[[Any], None] = lambda message: None
    ) -> None:
        self.limits, self.metrics, self.told = limits, metrics, told
        self.rows: dict[int, Row] = {}
        self.numbers = itertools.count()
        self.tokens = 0
        """Written so far, as the process last said."""
        self.unpacker = Unpacker()
        self.heard = 0
        """How often something came from the process."""
        self.lost = asyncio.Event()
        """The process is gone."""

    def has_room(self, rows: int = 1) -> bool:
        """Whether there are free places in batch and queue for so many, and the process reads what it is sent."""
        free = self.limits.batch_rows + self.limits.queue_rows - len(self.rows)
        return rows <= free and self.transport.get_write_buffer_size() < UNREAD_BYTES

    @property
    def running(self) -> int:
        return sum(row.begun for row in self.rows.values())

    @property
    def waiting(self) -> int:
        return len(self.rows) - self.running

    def submit(
        self, prompts: Sequence[Prompt], deliver: Callable[[Event], None], asker: str | None = None
    ) -> list[int]:
        """Has them written; returns their numbers. Raises QueueFullError where there is no room for all of them.

        deliver: gets the events, each with its prompt's index as its row; asker: whose tokens they are.
        """
        if self.lost.is_set() or not self.has_room(len(prompts)):
            raise QueueFullError
        numbered = [prompt._replace(number=next(self.numbers)) for prompt in prompts]
        self.rows |= {prompt.number: Row(index, deliver, asker) for index, prompt in enumerate(numbered)}
        self.send(Write(numbered))
        return [prompt.number for prompt in numbered]

    def cancel(self, numbers: Sequence[int]) -> None:
        """Running rows end with the token that is being computed, waiting ones give their places back at once."""
        open_ = [number for number in numbers if number in self.rows]
        for number in open_:
            if not self.rows[number].begun:
                del self.rows[number]
        if open_:
            self.send(Cancel(open_))

    def stop(self, finish: FinishReason = "stopped") -> None:
        """Ends every row."""
        rows, self.rows = self.rows, {}
        for row in rows.values():
            row.deliver(Event(row.index, "", finish, tokens=row.tokens))

    # --- the socket ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def send(self, message: Any) -> None:
        self.transport.write(packed(message))

    def data_received(self, data: bytes) -> None:
        self.heard += 1
        for message in self.unpacker.feed(data):
            if isinstance(message, Written):
                self.take(message)
            elif not isinstance(message, Ping):
                self.told(message)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()
        self.stop("lost")
        self.told(None)

    def take(self, written: Written) -> None:
        self.metrics.generated_tokens.inc(written.tokens - self.tokens)
        self.tokens = written.tokens
        for event in written.events:
            row = self.rows.get(event.row)
            if row is None:  # cancelled, at a moment when it was already begun
                continue
            if event.tokens and not row.tokens:
                self.metrics.cached_tokens.inc(event.cached)
                self.metrics.first_token_seconds.observe(time.monotonic() - row.arrived)
            self.metrics.written(event.tokens - row.tokens, row.asker)
            row.begun, row.tokens = True, event.tokens
            if event.finish:
                del self.rows[event.row]
            if event.finish or event.text or event.scores:
                row.deliver(event._replace(row=row.index))
