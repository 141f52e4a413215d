"""OpenAI's chat completions (POST /v1/chat/completions): a conversation in, its next message out.

https://platform.openai.com/docs/api-reference/chat. How a conversation becomes a prompt is said in
tokenizer/prompt_template.py; all the rest is as in completions (openai.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....config.base import shown
from ....config.generation import LimitsConfig
from ....tokenizer.prompt_template import Message, read_messages
from ....tokenizer.tokenizer import Tokenizer
from ...given_texts import encode_asked
from ..model_process.messages import Event
from ..requests import PARAMETERS, CompletionRequest, RequestError, bad, check_known, check_text, is_whole
from .openai import COMMON, EventStream, check_without_effect, flag, parse_common

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "auto", "none"),
    "parallel_tool_calls": (None,),
    "functions": (None, []),
    "function_call": (None, "auto", "none"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    "moderation": (None,),
    "service_tier": (None, "default", "auto"),
    "store": (None, False),
    "metadata": (None, {}),
}
"""OpenAI's parameters that moyun lacks → the values of them that change nothing, and so are taken."""

LABELS = ("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options")
"""Who asks, and how prompts are to be kept for the next time: whatever they say, the text is the same."""

TOP_LOGPROBS = 20
"""OpenAI's most of the likeliest tokens that are told beside each: in completions there are five."""

FIELDS = ("messages", *COMMON, "max_completion_tokens", "top_logprobs", *PARAMETERS, *WITHOUT_EFFECT, *LABELS)


def parse_chat(body: Mapping[str, Any], name: str, limits: LimitsConfig) -> tuple[CompletionRequest, list[Message]]:
    """What a body asks for, still without prompts, and its conversation; RequestError for what can't be done as asked.

    name: what clients call the served model.
    """
    check_known(body, FIELDS)
    check_without_effect(body, WITHOUT_EFFECT)
    older, newer = body.get("max_tokens"), body.get("max_completion_tokens")
    if older is not None and newer is not None and older != newer:
        raise bad("max_tokens", f"({shown(older)}) is another than max_completion_tokens ({shown(newer)}); give one")
    new_tokens = "max_tokens" if newer is None else "max_completion_tokens"
    request = parse_common(
        body, name, new_tokens, limits.max_new_tokens
    )  # as OpenAI's, it ends by itself or where it must
    try:
        messages = read_messages(body.get("messages"))
    except ValueError as error:
        raise RequestError(400, str(error), "messages") from None
    if messages[-1].role != "user":
        raise bad("messages", "end with the assistant's; the last must be a user's, which is answered")
    return replace(request, logprobs=top_of(body)), messages


def top_of(body: Mapping[str, Any]) -> int | None:
    """How many of the likeliest tokens are wanted beside each; None where no log-probabilities are."""
    wanted, top = flag(body, "logprobs"), body.get("top_logprobs")
    if top is not None and (not is_whole(top) or not 0 <= top <= TOP_LOGPROBS):
        raise bad("top_logprobs", f"must be a whole number from 0 to {TOP_LOGPROBS}, not {shown(top)}")
    if top is not None and not wanted:
        raise bad("top_logprobs", "is given without logprobs: true")
    return (top or 0) if wanted else None


def with_conversation(
    request: CompletionRequest, messages: Sequence[Message], tokenizer: Tokenizer, most: int, characters: int
) -> CompletionRequest:
    """The request with its prompt. RequestError where it has more than `most` tokens.

    characters: the most that so many tokens can spell.
    """
    for message in messages:
        check_text("messages", message.text)
    count = sum(len(message.text) for message in messages)
    if count > characters:
        raise too_long(f"{count} characters", most)
    ids = encode_asked([*messages], tokenizer)
    if len(ids) > most:
        raise too_long(f"{len(ids)} tokens, template included", most)
    return replace(request, prompts=[ids], messages=messages)


def too_long(found: str, most: int) -> RequestError:
    message = (
        f"messages have {found}; this server takes up to {most} tokens (limits.prompt_tokens, the model's positions)"
    )
    return RequestError(400, message, "messages", "context_length_exceeded")


def answered(event: Event, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    """A choice of the whole answer. event: its last."""
    message = {"role": "assistant", "content": event.text, "refusal": None}
    return {"index": event.row, "message": message, "logprobs": logprobs, "finish_reason": event.finish}


class ChatStream(EventStream):
    """The role of each choice first, then a piece of its text an event, last its finish_reason; then `[DONE]`."""

    def opening(self) -> Iterator[dict[str, Any]]:
        for row in range(self.request.n):
            yield delta(row, {"role": "assistant", "content": "", "refusal": None})

    def choices(self, event: Event) -> Iterator[dict[str, Any]]:
        logprobs = content_logprobs(self.handle.logprobs_of(event), self.request)
        if event.text or (logprobs and logprobs["content"]):
            yield delta(event.row, {"content": event.text}, logprobs)
        if event.finish:
            yield delta(event.row, {}, finish=event.finish)


def delta(
    row: int, content: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    """What a chunk adds to a choice's message."""
    return {"index": row, "delta": content, "logprobs": logprobs, "finish_reason": finish}


def content_logprobs(found: dict[str, Any] | None, request: CompletionRequest) -> dict[str, Any] | None:
    """Completions' `logprobs` in the form that chat completions have them in."""
    if found is None:
        return None
    tokens = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
    content = [
        entry(token, logprob) | {"top_logprobs": [entry(*each) for each in list(top.items())[: request.logprobs]]}
        for token, logprob, top in tokens
    ]
    return {"content": content, "refusal": None}


def entry(token: str, logprob: float) -> dict[str, Any]:
    spelt = re.fullmatch(r"bytes:((?:\\x[0-9a-f]{2})+)", token)
    content = bytes.fromhex(spelt[1].replace("\\x", "")) if spelt else token.encode()
    return {"token": token, "logprob": logprob, "bytes": list(content)}
