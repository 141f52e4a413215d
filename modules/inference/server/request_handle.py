"""One request while it is answered: its prompts in the engine, their events, and whether the client is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType

from starlette.types import Receive

from ...tokenizer.tokenizer import Tokenizer
from ..text_generator import Writer
from .engine import ActiveSequence, Engine, Event
from .requests import CompletionRequest, RequestError


class ClientGoneError(Exception):
    """Nobody is left to answer."""


class RequestHandle:
    """`async with` it: whatever ends the block, what is still being written for the request is stopped.

    Raises engine.QueueFullError when it is made, and then nothing has been queued.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        wanted: CompletionRequest,
        prompts: Sequence[list[int]],
        receive: Receive,
    ) -> None:
        self.inbox: asyncio.Queue[Event | None] = asyncio.Queue()
        self.engine, self.receive = engine, receive
        self.jobs = [
            ActiveSequence(
                row, ids, wanted.config, Writer(tokenizer, wanted.config.stop), wanted.stream, self.inbox.put_nowait
            )
            for row, ids in enumerate(prompts)
        ]
        self.open = len(self.jobs)
        engine.submit(self.jobs)

    async def __aenter__(self) -> RequestHandle:
        self.watcher = asyncio.create_task(self.watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.watcher.cancel()
        if self.open:
            self.engine.cancel(self.jobs)

    async def watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.engine.cancel(self.jobs)  # at once: whoever reads the inbox may be busy sending
        self.inbox.put_nowait(None)

    async def next(self) -> Event | None:
        """The next piece or end of a row; None when all have ended. Raises ClientGoneError; RequestError 500."""
        if not self.open:
            return None
        event = await self.inbox.get()
        if event is None:
            raise ClientGoneError
        if event.finish == "failed":
            raise RequestError(500, "the model failed on this request; the server's log says why", code="model_failed")
        if event.finish == "stopped":
            raise RequestError(503, "the server was stopped before this was done", code="draining")
        self.open -= event.finish is not None
        return event

    async def ends(self) -> list[Event]:
        """The last event of each row, which holds its whole text unless it was streamed."""
        events: dict[int, Event] = {}
        while event := await self.next():
            if event.finish:
                events[event.row] = event
        return [events[row] for row in range(len(self.jobs))]

    @property
    def tokens(self) -> int:
        """Written so far, of all rows."""
        return sum(job.tokens for job in self.jobs)
