"""OpenAI's completions (POST /v1/completions, GET /v1/models), as its Python client sends and reads them.

https://platform.openai.com/docs/api-reference/completions. Beside its parameters: top_k, min_p and repetition_penalty.
What OpenAI has and moyun hasn't is refused by name unless it has the value that changes nothing. Streams are
server-sent events, written by hand so that a client that hangs up is noticed at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...config.base import shown
from .engine import Event
from .request_handle import ClientGoneError, RequestHandle
from .requests import (
    PARAMETERS,
    CompletionRequest,
    RequestError,
    as_request_error,
    bad,
    check_known,
    is_whole,
    parse_parameters,
)

NEW_TOKENS = 16
"""OpenAI's default of max_tokens."""

TOP_LOGPROBS = 5
"""OpenAI's most of the likeliest tokens that are told beside each."""

OPENAI_NAMES = {"max_new_tokens": "max_tokens"}

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "suffix": (None, ""),
}
"""OpenAI's parameters that moyun lacks → the values of them that change nothing, and so are taken."""

OWN = ("model", "prompt", "max_tokens", "stream", "stream_options", "echo", "logprobs", "user")
FIELDS = (*OWN, *PARAMETERS, *WITHOUT_EFFECT)


def parse_completion(body: Mapping[str, Any], name: str) -> CompletionRequest:
    """What a body of /v1/completions asks for; RequestError for anything that can't be done as asked.

    name: what clients call the served model.
    """
    check_known(body, FIELDS)
    check_model(body.get("model", name), name)
    if not isinstance(user := body.get("user"), str | None):
        raise bad("user", f"must be a text, not {shown(user)}")
    for field, values in WITHOUT_EFFECT.items():
        value = body.get(field)
        if isinstance(value, bool) or value not in values:
            raise bad(field, f"isn't done here: leave it out, or {shown(values[-1])} (not {shown(value)})")
    echo, most = flag(body, "echo"), body.get("max_tokens")
    given = {"max_new_tokens": most} | {field: body.get(field) for field in PARAMETERS}
    if only_prompt := echo and is_whole(most) and most == 0:  # which nothing else that makes text can mean
        del given["max_new_tokens"]
    # In OpenAI's interface null is the same as leaving it out.
    config = parse_parameters(
        {"max_new_tokens": NEW_TOKENS} | {k: v for k, v in given.items() if v is not None}, OPENAI_NAMES
    )
    options = body.get("stream_options")
    if options is not None and (not isinstance(options, dict) or set(options) - {"include_usage"}):
        raise bad("stream_options", f"must be {{'include_usage': true or false}}, not {shown(options)}")
    with_usage = flag(options or {}, "include_usage")
    if only_prompt:
        config.max_new_tokens = 0
    return CompletionRequest(prompts_of(body), config, flag(body, "stream"), echo, with_usage, logprobs_of(body))


def logprobs_of(body: Mapping[str, Any]) -> int | None:
    value = body.get("logprobs")
    if value is not None and (not is_whole(value) or not 0 <= value <= TOP_LOGPROBS):
        raise bad("logprobs", f"must be a whole number from 0 to {TOP_LOGPROBS}, or null, not {shown(value)}")
    return value


def check_model(given: Any, name: str) -> None:
    if not isinstance(given, str):
        raise bad("model", f"must be a text, not {shown(given)}")
    if given != name:
        message = f"model {shown(given)} isn't served here; {name!r} is (GET /v1/models)"
        raise RequestError(404, message, "model", "model_not_found")


def prompts_of(body: Mapping[str, Any]) -> list[str | list[int]]:
    """One prompt or several; each is a text, or a list of token ids."""
    prompt = body.get("prompt")
    if not isinstance(prompt, str | list):
        raise bad("prompt", f"must be a text or a list of texts, not {shown(prompt)}")
    if isinstance(prompt, str) or (prompt and all(map(is_whole, prompt))):
        return [prompt]
    return prompt


def flag(body: Mapping[str, Any], field: str) -> bool:
    value = body.get(field)
    if value is not None and not isinstance(value, bool):
        raise bad(field, f"must be true or false, not {shown(value)}")
    return bool(value)


def answer_head(identity: str, created: int, name: str) -> dict[str, Any]:
    """What every answer and every chunk of a stream begins with."""
    return {"id": identity, "object": "text_completion", "created": created, "model": name}


def choice(event: Event, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": event.row, "text": event.text, "logprobs": logprobs, "finish_reason": event.finish}


def token_usage(prompts: Sequence[Sequence[int]], written: int) -> dict[str, int]:
    read = sum(len(ids) for ids in prompts)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def completion(head: dict[str, Any], choices: Sequence[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
    """The whole answer."""
    return head | {"choices": choices, "usage": usage}


def chunk(content: dict[str, Any] | str) -> bytes:
    """A server-sent event."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def openai_error(problem: RequestError) -> dict[str, Any]:
    """The body of an error, as OpenAI writes it."""
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    content = {"message": str(problem), "type": kind, "param": problem.field, "code": problem.code}
    return {"error": content}


def model_entry(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "moyun"}


logger = logging.getLogger(__name__)

LAST_WORD_SECONDS = 1.0
"""How long a client that was too slow is given to take the message that says so."""

OUTCOME = "moyun.outcome"
"""Key of the ASGI scope: how a stream ended, since its status 200 was sent before that was known."""


class EventStream(Response):
    """A piece of a row's text an event, each row's finish_reason in its last, then `[DONE]`."""

    def __init__(
        self,
        handle: RequestHandle,
        request: CompletionRequest,
        prompts: Sequence[Sequence[int]],
        head: dict[str, Any],
        deadline: float,
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.handle, self.request, self.prompts, self.head, self.deadline = handle, request, prompts, head, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem: Exception | None = None
        async with self.handle:
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
        while event := await self.handle.next():
            logprobs = self.handle.logprobs_of(event)
            if event.text or event.finish or (logprobs and logprobs["tokens"]):
                await self.send_chunk(send, [choice(event, logprobs)])
        if self.request.include_usage:
            await self.send_chunk(send, [], usage=token_usage(self.prompts, self.handle.tokens))
        await send({"type": "http.response.body", "body": chunk("[DONE]"), "more_body": False})

    async def send_chunk(self, send: Send, choices: list[dict[str, Any]], **others: Any) -> None:
        body = chunk(self.head | {"choices": choices} | others)
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def break_off(self, scope: Scope, send: Send, error: Exception) -> None:
        """The last event says why, in place of `[DONE]`: the status has been sent long ago."""
        if not isinstance(error, RequestError | TimeoutError):
            logger.error("a stream failed", exc_info=error)
        problem = as_request_error(error)
        scope[OUTCOME] = "timeout" if problem.status == 504 else "failed"
        body = chunk(openai_error(problem))
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_SECONDS):
                await send({"type": "http.response.body", "body": body, "more_body": False})
