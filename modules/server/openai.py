"""OpenAI's completions (POST /v1/completions, GET /v1/models), as its Python client sends and reads them.

https://platform.openai.com/docs/api-reference/completions. Beside its parameters: top_k and repetition_penalty.
What OpenAI has and moyun hasn't is refused by name unless it has the value that changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .engine import Event
from .requests import PARAMETERS, RequestError, Wanted, bad, parameters, refuse_unknown, shown

NEW_TOKENS = 16
"""OpenAI's default of max_tokens."""
NAMES = {"max_new_tokens": "max_tokens"}
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None,),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
}
"""What may be given of that which isn't there."""
OWN = ("model", "prompt", "max_tokens", "stream", "stream_options", "echo", "user")
FIELDS = (*OWN, *PARAMETERS, *WITHOUT_EFFECT)


def parse(body: Mapping[str, Any], name: str) -> Wanted:
    """RequestError for anything that can't be done as asked; name: what the served model is called."""
    refuse_unknown(body, FIELDS)
    check_model(body.get("model", name), name)
    for field, values in WITHOUT_EFFECT.items():
        value = body.get(field)
        if isinstance(value, bool) or value not in values:
            raise bad(field, f"isn't done here: leave it out, or {shown(values[-1])} (not {shown(value)})")
    given = {"max_new_tokens": body.get("max_tokens")} | {field: body.get(field) for field in PARAMETERS}
    # In OpenAI's interface null is the same as leaving it out.
    config = parameters({"max_new_tokens": NEW_TOKENS} | {k: v for k, v in given.items() if v is not None}, NAMES)
    options = body.get("stream_options")
    if options is not None and (not isinstance(options, dict) or set(options) - {"include_usage"}):
        raise bad("stream_options", f"must be {{'include_usage': true or false}}, not {shown(options)}")
    usage = flag(options or {}, "include_usage")
    return Wanted(prompts_of(body), config, flag(body, "stream"), flag(body, "echo"), usage)


def check_model(given: Any, name: str) -> None:
    if not isinstance(given, str):
        raise bad("model", f"must be a text, not {shown(given)}")
    if given != name:
        message = f"model {shown(given)} isn't served here; {name!r} is (GET /v1/models)"
        raise RequestError(404, message, "model", "model_not_found")


def prompts_of(body: Mapping[str, Any]) -> list[str]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and any(isinstance(part, int | list) for part in prompt):
        raise bad("prompt", "must be a text or a list of texts; token ids aren't taken")
    if not isinstance(prompt, str | list):
        raise bad("prompt", f"must be a text or a list of texts, not {shown(prompt)}")
    return [prompt] if isinstance(prompt, str) else prompt


def flag(body: Mapping[str, Any], field: str) -> bool:
    value = body.get(field)
    if value is not None and not isinstance(value, bool):
        raise bad(field, f"must be true or false, not {shown(value)}")
    return bool(value)


def head(identity: str, created: int, name: str) -> dict[str, Any]:
    """What every answer and every chunk of a stream begins with."""
    return {"id": identity, "object": "text_completion", "created": created, "model": name}


def choice(row: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": row, "text": text, "logprobs": None, "finish_reason": finish}


def usage(prompts: Sequence[Sequence[int]], written: int) -> dict[str, int]:
    read = sum(len(ids) for ids in prompts)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def completion(start: dict[str, Any], wanted: Wanted, ends: Sequence[Event], used: dict[str, int]) -> dict[str, Any]:
    """The whole answer; ends: each row's last event, in order."""
    before = wanted.prompts if wanted.echo else [""] * len(ends)
    choices = [choice(end.row, text + end.text, end.finish) for text, end in zip(before, ends, strict=True)]
    return start | {"choices": choices, "usage": used}


def chunk(content: dict[str, Any] | str) -> bytes:
    """A server-sent event."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def error(problem: RequestError) -> dict[str, Any]:
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    content = {"message": str(problem), "type": kind, "param": problem.field, "code": problem.code}
    return {"error": content}


def model_card(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "moyun"}
