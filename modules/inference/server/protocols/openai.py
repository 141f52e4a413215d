"""OpenAI's completions (POST /v1/completions, GET /v1/models), as its Python client sends and reads them.

https://platform.openai.com/docs/api-reference/completions. Beside its parameters: top_k, min_p and repetition_penalty.
What OpenAI has and moyun hasn't is refused by name unless it has the value that changes nothing. Streams are
server-sent events, written by hand so that a client that hangs up is noticed at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ....config.base import shown
from ....config.generation import CONSTRAINTS
from ..model_process.messages import Event
from ..prometheus import outcome_of
from ..request_handle import ClientGoneError, RequestHandle
from ..requests import (
    PARAMETERS,
    CompletionRequest,
    RequestError,
    as_request_error,
    bad,
    check_known,
    is_whole,
    parse_parameters,
)
from .response_format import FIELD as RESPONSE_FORMAT
from .response_format import schema_in

NEW_TOKENS = 16
"""OpenAI's default of max_tokens."""

TOP_LOGPROBS = 5
"""OpenAI's most of the likeliest tokens that are told beside each."""

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
}
"""OpenAI's parameters that moyun lacks → the values of them that change nothing, and so are taken."""

COMMON = ("model", "max_tokens", "stream", "stream_options", "n", "logprobs", "user", "response_format")
"""Fields of completions and of chat completions."""

FIELDS = ("prompt", *COMMON, "echo", "best_of", *PARAMETERS, *WITHOUT_EFFECT)


def parse_completion(body: Mapping[str, Any], name: str) -> CompletionRequest:
    """What a body of /v1/completions asks for; RequestError for anything that can't be done as asked.

    name: what clients call the served model.
    """
    check_known(body, FIELDS)
    check_without_effect(body, WITHOUT_EFFECT)
    echo, most = flag(body, "echo"), body.get("max_tokens")
    only_prompt = echo and is_whole(most) and most == 0  # which nothing else that makes text can mean
    request = parse_common({**body, "max_tokens": None} if only_prompt else body, name, "max_tokens", NEW_TOKENS)
    if only_prompt:
        request.config.max_new_tokens = 0
    best_of = body.get("best_of")
    if best_of is not None and (not is_whole(best_of) or best_of != request.n):
        raise bad("best_of", f"isn't done here: leave it out, or give what n is, {request.n} (not {shown(best_of)})")
    return replace(request, prompts=prompts_of(body), echo=echo, logprobs=logprobs_of(body))


def logprobs_of(body: Mapping[str, Any]) -> int | None:
    value = body.get("logprobs")
    if value is not None and (not is_whole(value) or not 0 <= value <= TOP_LOGPROBS):
        raise bad("logprobs", f"must be a whole number from 0 to {TOP_LOGPROBS}, or null, not {shown(value)}")
    return value


def parse_common(body: Mapping[str, Any], name: str, new_tokens: str, usual: int) -> CompletionRequest:
    """What completions and chat completions have in common, still without prompts.

    Args:
        new_tokens: what the client calls max_new_tokens.
        usual: max_new_tokens where it isn't given.
    """
    check_model(body.get("model", name), name)
    if not isinstance(user := body.get("user"), str | None):
        raise bad("user", f"must be a text, not {shown(user)}")
    given = {"max_new_tokens": body.get(new_tokens)} | {field: body.get(field) for field in PARAMETERS}
    # In OpenAI's interface null is the same as leaving it out.
    values = {"max_new_tokens": usual} | {k: v for k, v in given.items() if v is not None}
    names = {"max_new_tokens": new_tokens} | with_response_format(values, body)
    config = parse_parameters(values, names)
    options = body.get("stream_options")
    if options is not None and (not isinstance(options, dict) or set(options) - {"include_usage"}):
        raise bad("stream_options", f"must be {{'include_usage': true or false}}, not {shown(options)}")
    n = 1 if body.get("n") is None else body["n"]
    if not is_whole(n) or n < 1:
        raise bad("n", f"must be a whole number of at least 1, not {shown(n)}")
    with_usage = flag(options or {}, "include_usage")
    schema = names.get("json_schema", "json_schema")
    return CompletionRequest(
        [], config, flag(body, "stream"), include_usage=with_usage, n=n, new_tokens=new_tokens, schema=schema
    )


def with_response_format(values: dict[str, Any], body: Mapping[str, Any]) -> dict[str, str]:
    """Takes the schema of a response_format into the parameters; returns json_schema's name there, if it has one."""
    try:
        schema = schema_in(body.get(RESPONSE_FORMAT))
    except ValueError as error:
        raise bad(*str(error).split(" ", 1)) from None
    if schema is None:
        return {}
    if others := [name for name in CONSTRAINTS if name in values]:
        raise bad(RESPONSE_FORMAT, f"and {' and '.join(others)} exclude each other: a text is held to one of them")
    values["json_schema"] = schema
    return {"json_schema": RESPONSE_FORMAT}


def check_without_effect(body: Mapping[str, Any], fields: Mapping[str, Sequence[Any]]) -> None:
    """Refuses what moyun lacks where its value would change something. fields: name → values that change nothing."""
    for field, values in fields.items():
        value = body.get(field)
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values):
            raise bad(field, f"isn't done here: leave it out, or {shown(values[-1])} (not {shown(value)})")


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


def answer_head(kind: str, prefix: str, name: str) -> dict[str, Any]:
    """What every answer and every chunk of a stream begins with."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": name}


def choice(event: Event, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": event.row, "text": event.text, "logprobs": logprobs, "finish_reason": event.finish}


def token_usage(prompts: Sequence[Sequence[int]], handle: RequestHandle) -> dict[str, Any]:
    given, written = sum(len(ids) for ids in prompts), handle.tokens
    cached = {"prompt_tokens_details": {"cached_tokens": handle.cached}} if handle.cached else {}
    return {"prompt_tokens": given, "completion_tokens": written, "total_tokens": given + written, **cached}


def completion(head: dict[str, Any], choices: Sequence[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
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
        more = {"usage": None} if self.request.include_usage else {}  # null but in the last, as OpenAI has it
        for choice_of_row in self.opening():
            await self.send_chunk(send, [choice_of_row], **more)
        while event := await self.handle.next():
            for choice_of_row in self.choices(event):
                await self.send_chunk(send, [choice_of_row], **more)
        if self.request.include_usage:
            await self.send_chunk(send, [], usage=token_usage(self.prompts, self.handle))
        await send({"type": "http.response.body", "body": chunk("[DONE]"), "more_body": False})

    def opening(self) -> Iterator[dict[str, Any]]:
        """What comes before all text."""
        yield from ()

    def choices(self, event: Event) -> Iterator[dict[str, Any]]:
        """What an event becomes, a chunk each."""
        logprobs = self.handle.logprobs_of(event)
        if event.text or event.finish or (logprobs and logprobs["tokens"]):
            yield choice(event, logprobs)

    async def send_chunk(self, send: Send, choices: list[dict[str, Any]], **others: Any) -> None:
        body = chunk(self.head | {"choices": choices} | others)
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def break_off(self, scope: Scope, send: Send, error: Exception) -> None:
        """The last event says why, in place of `[DONE]`: the status has been sent long ago."""
        if not isinstance(error, RequestError | TimeoutError):
            logger.error("a stream failed", exc_info=error)
        problem = as_request_error(error)
        scope[OUTCOME] = outcome_of(problem.status)
        body = chunk(openai_error(problem))
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_SECONDS):
                await send({"type": "http.response.body", "body": body, "more_body": False})
