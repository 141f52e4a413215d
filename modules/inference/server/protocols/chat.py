"""OpenAI's chat completions (POST /v1/chat/completions): a conversation in, its next message out.

https://platform.openai.com/docs/api-reference/chat. How a conversation becomes a prompt is said in
tokenizer/conversation.py; all the rest is as in completions (openai.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....config.base import shown
from ....config.generation import LimitsConfig
from ....tokenizer.conversation import Message, encode_turns, read_messages
from ....tokenizer.tokenizer import Tokenizer
from ..engine import Event
from ..requests import PARAMETERS, CompletionRequest, RequestError, bad, check_known, check_text
from .openai import COMMON, EventStream, check_without_effect, parse_common

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "auto", "none"),
    "parallel_tool_calls": (None,),
    "functions": (None, []),
    "function_call": (None, "auto", "none"),
    "response_format": (None, {"type": "text"}),
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
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
}
"""OpenAI's parameters that moyun lacks → the values of them that change nothing, and so are taken."""

LABELS = ("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options")
"""Who asks, and how prompts are to be kept for the next time: whatever they say, the text is the same."""

FIELDS = ("messages", *COMMON, "max_completion_tokens", *PARAMETERS, *WITHOUT_EFFECT, *LABELS)


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
    return request, messages


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
    ids = [token for turn in encode_turns(messages, tokenizer) for part in turn for token in part]
    if len(ids) > most:
        raise too_long(f"{len(ids)} tokens, template included", most)
    return replace(request, prompts=[ids])


def too_long(found: str, most: int) -> RequestError:
    message = (
        f"messages have {found}; this server takes up to {most} tokens (limits.prompt_tokens, the model's positions)"
    )
    return RequestError(400, message, "messages", "context_length_exceeded")


def chat_completion(head: dict[str, Any], ends: Sequence[Event], usage: dict[str, int]) -> dict[str, Any]:
    """The whole answer; ends: each choice's last event, in order."""
    choices = [
        {
            "index": end.row,
            "message": {"role": "assistant", "content": end.text, "refusal": None},
            "logprobs": None,
            "finish_reason": end.finish,
        }
        for end in ends
    ]
    return head | {"choices": choices, "usage": usage}


class ChatStream(EventStream):
    """The role of each choice first, then a piece of its text an event, last its finish_reason; then `[DONE]`."""

    def opening(self) -> Iterator[dict[str, Any]]:
        for row in range(self.request.n):
            yield delta(row, {"role": "assistant", "content": "", "refusal": None})

    def choices(self, event: Event) -> Iterator[dict[str, Any]]:
        if event.text:
            yield delta(event.row, {"content": event.text})
        if event.finish:
            yield delta(event.row, {}, event.finish)


def delta(row: int, content: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """What a chunk adds to a choice's message."""
    return {"index": row, "delta": content, "logprobs": None, "finish_reason": finish}
