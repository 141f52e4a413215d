"""Answers in pieces: OpenAI's server-sent events, written by hand so that a client's going is noticed at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from . import openai
from .exchange import ClientGoneError, Exchange
from .requests import RequestError, Wanted, as_problem

logger = logging.getLogger(__name__)

LAST_WORD_SECONDS = 1.0
"""How long a client that was too slow is given to take the message that says so."""
OUTCOME = "moyun.outcome"
"""Where the scope says how a stream ended, whose status was sent before that was known."""


class EventStream(Response):
    """A piece of a row's text an event, each row's finish_reason in its last, then `[DONE]`."""

    def __init__(
        self,
        exchange: Exchange,
        wanted: Wanted,
        prompts: Sequence[Sequence[int]],
        head: dict[str, Any],
        deadline: float,
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.exchange, self.wanted, self.prompts, self.head, self.deadline = exchange, wanted, prompts, head, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem: Exception | None = None
        async with self.exchange:
            try:
                async with asyncio.timeout_at(self.deadline):
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await self.send_pieces(send)
            except ClientGoneError:
                scope[OUTCOME] = "disconnected"
                return
            except Exception as error:
                problem = error
        if problem:
            await self.break_off(scope, send, problem)

    async def send_pieces(self, send: Send) -> None:
        if self.wanted.echo:
            for row, prompt in enumerate(self.wanted.prompts):
                await self.say(send, [openai.choice(row, prompt, None)])
        while event := await self.exchange.next():
            await self.say(send, [openai.choice(event.row, event.text, event.finish)])
        if self.wanted.include_usage:
            await self.say(send, [], usage=openai.usage(self.prompts, self.exchange.tokens))
        await send({"type": "http.response.body", "body": openai.chunk("[DONE]"), "more_body": False})

    async def say(self, send: Send, choices: list[dict[str, Any]], **others: Any) -> None:
        body = openai.chunk(self.head | {"choices": choices} | others)
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def break_off(self, scope: Scope, send: Send, error: Exception) -> None:
        """The last event says why, in place of `[DONE]`: the status has been sent long ago."""
        if not isinstance(error, RequestError | TimeoutError):
            logger.error("a stream failed", exc_info=error)
        problem = as_problem(error)
        scope[OUTCOME] = "timeout" if problem.status == 504 else "failed"
        body = openai.chunk(openai.error(problem))
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_SECONDS):
                await send({"type": "http.response.body", "body": body, "more_body": False})
