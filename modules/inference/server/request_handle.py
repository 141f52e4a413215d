"""One request while it is being answered: its sequences, their events, and its client's connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from starlette.types import Receive

from ...tokenizer.tokenizer import Tokenizer
from ..logprobs import LogprobsWriter
from .model_process.messages import Event, FinishReason, Prompt
from .model_process.model_client import ModelClient
from .records.transcript import Transcript
from .requests import CompletionRequest, RequestError


class ClientGoneError(Exception):
    """The client has closed the connection."""


ENDS: dict[FinishReason, tuple[int, str, str]] = {
    "failed": (500, "the model failed on this request; the server's log says why", "model_failed"),
    "lost": (500, "the model's process ended while this was written; it is being started again", "model_lost"),
    "stopped": (503, "the server was stopped before this was done", "draining"),
}
"""Why a text couldn't be written → status, message and code."""


class RequestHandle:
    """A request's sequences. Used in `async with`: at the end of the block what is unfinished is stopped.

    Raises QueueFullError when it is made and the queue has no room for all of them; then none is queued.
    """

    def __init__(
        self,
        model: ModelClient,
        tokenizer: Tokenizer,
        request: CompletionRequest,
        prompts: Sequence[list[int]],
        receive: Receive,
        asker: str | None = None,
    ) -> None:
        """asker: the name of the API key that asks."""
        self.inbox: asyncio.Queue[Event | None] = asyncio.Queue()
        self.model, self.receive = model, receive
        self.transcript = Transcript(request, prompts)
        self.logprobs: list[LogprobsWriter] = []
        self.echoed: dict[int, str] = {}
        """Prompts that stand before texts of which nothing was told yet."""
        sequences = []
        for row, (given, ids, config) in enumerate(
            (given, ids, config)
            for given, ids in zip(request.prompts, prompts, strict=True)
            for config in request.configs
        ):
            sequence = Prompt(0, ids, config, request.stream)
            echoed = (given if isinstance(given, str) else tokenizer.decode(given)) if request.echo else None
            if echoed:
                self.echoed[row] = echoed
            if request.logprobs is not None:
                writer = LogprobsWriter(tokenizer, request.logprobs, given, ids, echoed)
                self.logprobs.append(writer)
                sequence = sequence._replace(top=writer.top, scored=writer.scored)
            sequences.append(sequence)
        self.kept, self.n = [0] * len(sequences), request.n
        """Tokens of each row's prompt that weren't read; rows of a prompt."""
        self.open = len(sequences)
        self.written = [0] * len(sequences)
        """Tokens, by row."""
        self.numbers = model.submit(sequences, self.inbox.put_nowait, asker)

    async def __aenter__(self) -> RequestHandle:
        self.watcher = asyncio.create_task(self.watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.watcher.cancel()
        if self.open:
            self.model.cancel(self.numbers)

    async def watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.model.cancel(self.numbers)  # at once: whoever reads the inbox may be busy sending
        self.inbox.put_nowait(None)

    async def next(self) -> Event | None:
        """The next piece or end of a row; None when all have ended.

        Raises ClientGoneError, or RequestError where the model failed (500), the server stops (503), or what was asked
        for can't be written (400).
        """
        if not self.open:
            return None
        event = await self.inbox.get()
        if event is None:
            raise ClientGoneError
        if event.finish == "refused":
            raise RequestError(400, event.text, event.text.partition(" ")[0])
        if event.finish in ENDS:
            status, message, code = ENDS[event.finish]
            raise RequestError(status, message, code=code)
        self.kept[event.row] = event.cached
        self.open -= event.finish is not None
        self.transcript.add(event)
        self.written[event.row] = event.tokens
        return event._replace(text=self.echoed.pop(event.row, "") + event.text)

    def logprobs_of(self, event: Event) -> dict[str, Any] | None:
        """OpenAI's `logprobs` of an event's text, if they are wanted. To be asked once for each event, in order."""
        if not self.logprobs:
            return None
        complete = event.finish is not None and not event.cut
        return self.logprobs[event.row].push(event.text, event.scores, complete)

    async def ends(self) -> list[Event]:
        """The last event of each row, with all of its text and scores."""
        found: dict[int, Event] = {}
        while event := await self.next():
            if before := found.get(event.row):
                event = event._replace(text=before.text + event.text, scores=[*before.scores, *event.scores])
            found[event.row] = event
        return [found[row] for row in range(len(self.written))]

    @property
    def tokens(self) -> int:
        """Written so far, of all rows."""
        return sum(self.written)

    @property
    def cached(self) -> int:
        """Tokens of the prompts that weren't read, as each one's first text found them."""
        return sum(self.kept[:: self.n])
