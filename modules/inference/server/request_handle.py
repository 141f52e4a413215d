"""One request while it is being answered: its sequences in the engine, their events, and its client's connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from starlette.types import Receive

from ...tokenizer.tokenizer import Tokenizer
from ..logprobs import LogprobsWriter
from ..text_generator import Writer
from ..verse.verse_tokens import constraint_of
from .engine import ActiveSequence, Engine, Event
from .records.transcript import Transcript
from .requests import CompletionRequest, RequestError


class ClientGoneError(Exception):
    """The client has closed the connection."""


class RequestHandle:
    """A request's sequences in the engine. Used in `async with`: at the end of the block what is unfinished is stopped.

    Raises QueueFullError when it is made and the queue has no room for all of them; then none is queued.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        request: CompletionRequest,
        prompts: Sequence[list[int]],
        receive: Receive,
    ) -> None:
        self.inbox: asyncio.Queue[Event | None] = asyncio.Queue()
        self.engine, self.receive = engine, receive
        self.transcript = Transcript(request, prompts)
        texts = [(ids, config) for ids in prompts for config in request.configs]
        self.sequences = [
            ActiveSequence(row, ids, config, Writer(tokenizer, config.stop), request.stream, self.inbox.put_nowait)
            for row, (ids, config) in enumerate(texts)
        ]
        self.logprobs: list[LogprobsWriter] = []
        for sequence in self.sequences:
            sequence.constraint = constraint_of(tokenizer, sequence.prompt, sequence.config)
            prompt = request.prompts[sequence.row // request.n]
            echoed = (prompt if isinstance(prompt, str) else tokenizer.decode(prompt)) if request.echo else None
            if echoed:
                self.transcript.echoed[sequence.row] = len(echoed)
                sequence.pieces.append(echoed)
            if request.logprobs is not None:
                writer = LogprobsWriter(tokenizer, request.logprobs, prompt, sequence.prompt, echoed)
                self.logprobs.append(writer)
                sequence.scores = writer.scores
        self.open = len(self.sequences)
        engine.submit(self.sequences)

    async def __aenter__(self) -> RequestHandle:
        self.watcher = asyncio.create_task(self.watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.watcher.cancel()
        if self.open:
            self.engine.cancel(self.sequences)

    async def watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.engine.cancel(self.sequences)  # at once: whoever reads the inbox may be busy sending
        self.inbox.put_nowait(None)

    async def next(self) -> Event | None:
        """The next piece or end of a row; None when all have ended.

        Raises ClientGoneError, or RequestError where the model failed (500) or the server stops (503).
        """
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
        self.transcript.add(event)
        return event

    def logprobs_of(self, event: Event) -> dict[str, Any] | None:
        """OpenAI's `logprobs` of an event's text, if they are wanted. To be asked once for each event, in order."""
        if not self.logprobs:
            return None
        complete = event.finish is not None and not self.sequences[event.row].writer.stopped
        return self.logprobs[event.row].push(event.text, event.scores, complete)

    async def ends(self) -> list[Event]:
        """The last event of each row, which holds its whole text unless it was streamed."""
        events: dict[int, Event] = {}
        while event := await self.next():
            if event.finish:
                events[event.row] = event
        return [events[row] for row in range(len(self.sequences))]

    @property
    def tokens(self) -> int:
        """Written so far, of all rows."""
        return sum(sequence.tokens for sequence in self.sequences)
