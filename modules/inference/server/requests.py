"""Checks of what a client sends: the body's size and form, and every value in it, before anything is computed.

Whatever is refused is a RequestError: one line for the client, which names the field.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

from starlette.requests import Request

from ...config.base import ConfigError, shown
from ...config.generation import GenerationConfig, LimitsConfig, as_json
from ...config.guided.grammar import KEYS as GRAMMARS
from ...config.guided.grammar import fault_of
from ...tokenizer.prompt_template import Message
from ...tokenizer.tokenizer import Tokenizer
from ..row_constraints import constraint_of
from .protocols.response_format import FIELD as RESPONSE_FORMAT
from .protocols.response_format import schema_in

STOP_TEXTS, STOP_CHARACTERS = 16, 256
"""Of one request, and of each: they are looked for after every token, while all other rows wait."""

BEAM_SEARCH = ("num_beams", "length_penalty")
"""Its parameters; 1 is the default of each."""

LONGEST_NUMBER = 300
"""Digits of whole numbers."""

PARAMETERS = tuple(entry.name for entry in fields(GenerationConfig) if entry.name != "max_new_tokens")
"""Generation parameters that have the same name in every kind of request."""


class RequestError(Exception):
    """Why a request isn't answered with text: HTTP status, one line, and the field it is about."""

    def __init__(self, status: int, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(encodable(message))
        self.status, self.field, self.code = status, field and encodable(field), code


def as_request_error(error: Exception) -> RequestError:
    """What a client is told of any error; of an unexpected one only that the server's log has its traceback."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, TimeoutError):
        message = "not done within the server's limits.request_seconds; ask for fewer tokens, or try again later"
        return RequestError(504, message, code="timeout")
    return RequestError(500, "the server failed on this request; its log says why", code="internal_error")


@dataclass(frozen=True)
class CompletionRequest:
    """What a client asks for, in either protocol."""

    prompts: list[str | list[int]]
    """Texts, or token ids as they are: nothing comes before them."""
    config: GenerationConfig
    stream: bool = False
    echo: bool = False
    """Each text begins with its prompt."""
    include_usage: bool = False
    """OpenAI's: a stream ends with the count of tokens."""
    n: int = 1
    """Texts of each prompt."""
    new_tokens: str = "max_tokens"
    """What the client calls max_new_tokens."""
    schema: str = "json_schema"
    """What the client calls json_schema."""
    logprobs: int | None = None
    """OpenAI's: log-probabilities are wanted, and so many of the likeliest tokens beside each."""
    messages: Sequence[Message] = ()
    """The conversation that the one prompt was made of."""

    @property
    def configs(self) -> list[GenerationConfig]:
        """Of each text of a prompt. The first is what it is alone, the others have the seeds that come next."""
        seed = self.config.seed
        seeds = [None if seed is None else (seed + number) % 2**63 for number in range(self.n)]
        return [replace(self.config, seed=seed) for seed in seeds]


async def read_body(request: Request, limits: LimitsConfig) -> dict[str, Any]:
    """The body, a JSON object; RequestError 413 where it is too large, 415 or 400 where it is something else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also what keeps other web sites' scripts out: a browser asks before it sends this type across origins.
        raise RequestError(415, f"Content-Type must be application/json, not {shown(kind)}", "Content-Type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "Content-Encoding isn't taken: send the body as it is", "Content-Encoding")
    too_large = RequestError(413, f"the body is over {limits.body_bytes} bytes (limits.body_bytes)", "body")
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length) > limits.body_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.body_bytes:
            raise too_large
    content = parse_json(bytes(body))
    if grammars := list(grammars_in(content)):  # to try one takes a tenth of a second, which others needn't wait
        await asyncio.to_thread(lambda: [fault_of(*each) for each in grammars])
    return content


def grammars_in(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a body asks a text to be held to, in any protocol, as far as it can be read."""
    with suppress(ValueError):
        for values in [each for each in (body, body.get("params")) if isinstance(each, dict)]:
            for key in GRAMMARS:
                if isinstance(value := values.get(key), str | dict):
                    yield key, value if isinstance(value, str) else as_json(key, value)
        if schema := schema_in(body.get(RESPONSE_FORMAT)):
            yield "json_schema", as_json("json_schema", schema)


def parse_json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body, parse_int=parse_whole_number)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON; nested a thousand deep
        reason = str(error) if isinstance(error, ValueError) else "nested too deep"
        raise RequestError(400, f"the body isn't JSON in UTF-8: {reason}", "body") from None
    check_numbers(content)
    if not isinstance(content, dict):
        raise RequestError(400, f"the body must be a JSON object, not {shown(content)}", "body")
    return content


def parse_whole_number(digits: str) -> int | float:
    """Python refuses to read thousands of digits; as a float they are infinite."""
    return int(digits) if len(digits) < LONGEST_NUMBER else float(digits)


def check_numbers(content: Any) -> None:
    """NaN and Infinity, which Python's reader takes though JSON has no such numbers, and those beyond all floats."""
    left = [("body", content)]
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += [(name, part) for part in value]
        elif isinstance(value, float) and not math.isfinite(value):
            found = "NaN" if math.isnan(value) else "Infinity or a number as large"
            raise bad(name if name.isidentifier() else shown(name), f"must hold finite numbers, not {found}")


def parse_parameters(values: Mapping[str, Any], names: Mapping[str, str]) -> GenerationConfig:
    """GenerationConfig.parse, and the server's own limits of `stop`; errors are RequestErrors.

    Args:
        values: by moyun's names.
        names: moyun's name → the client's, where they differ.
    """
    for name in BEAM_SEARCH:
        if values.get(name, 1) != 1:
            raise bad(name, "isn't done by the server: search with generate, predict or pipeline(), or give 1")
    try:
        config = GenerationConfig.parse(values)
    except ConfigError as error:
        name, _, complaint = error.complaints[0].partition(" ")
        raise bad(names.get(name, name), complaint[:500]) from None
    if len(config.stop) > STOP_TEXTS:
        raise bad("stop", f"has {len(config.stop)} texts; there may be {STOP_TEXTS}")
    for text in config.stop:
        check_text("stop", text)
        if len(text) > STOP_CHARACTERS:
            raise bad("stop", f"holds a text of {len(text)} characters; there may be {STOP_CHARACTERS}")
    return config


def check_limits(request: CompletionRequest, limits: LimitsConfig, field: str, tokens: int, characters: int) -> None:
    """Raises RequestError for what is over a limit, before anything is tokenized.

    Args:
        field: what the client calls its prompts.
        tokens: the most that a prompt's own text may have.
        characters: the most that so many tokens can spell.
    """
    count = len(request.prompts)
    if not 1 <= count <= limits.request_rows:
        raise bad(field, f"has {count} texts; a request may have 1 to {limits.request_rows} (limits.request_rows)")
    if count * request.n > limits.request_rows:
        asked = f"({shown(request.n)}) texts of each of {count} prompts are too many"
        raise bad("n", f"{asked}; a request may have 1 to {limits.request_rows} in all (limits.request_rows)")
    if request.config.max_new_tokens > limits.max_new_tokens:
        asked = shown(request.config.max_new_tokens)
        raise bad(request.new_tokens, f"({asked}) is over {limits.max_new_tokens} (limits.max_new_tokens)")
    for row, prompt in enumerate(request.prompts):
        if isinstance(prompt, list):  # of token ids, which `tokenize` checks
            continue
        check_text(f"{field} {row}", prompt)
        if len(prompt) > characters:
            raise too_long(f"{field} {row}", f"{len(prompt)} characters", tokens)


def check_text(field: str, text: Any) -> None:
    if not isinstance(text, str):
        raise bad(field, f"must be a text, not {shown(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise bad(field, f"holds half a surrogate pair at character {error.start}, which no text can") from None


def tokenize(request: CompletionRequest, tokenizer: Tokenizer, most: int, field: str) -> list[list[int]]:
    """Each prompt's ids; RequestError for one that is empty, has more than `most`, or holds what is no token's id."""
    prompts = []
    for row, prompt in enumerate(request.prompts):
        given = isinstance(prompt, list)
        ids = prompt if isinstance(prompt, list) else tokenizer.encode_prompt(prompt)
        if not ids:
            raise bad(f"{field} {row}", "is empty; give at least one token")
        if len(ids) > most:  # counted as the client can: the text's own
            own = 0 if given else overhead_of(tokenizer)
            raise too_long(f"{field} {row}", f"{len(ids) - own} tokens", most - own)
        if given:
            check_ids(f"{field} {row}", ids, tokenizer.vocab_size)
        check_constraint(f"{field} {row}", ids, request, tokenizer)
        prompts.append(ids)
    check_bias(request.config, tokenizer)
    return prompts


def check_bias(config: GenerationConfig, tokenizer: Tokenizer) -> None:
    """As batch_rows.check_biases, without torch."""
    if unknown := [token for token in config.biases if token >= tokenizer.vocab_size]:
        rule = f"this model's token ids are from 0 to {tokenizer.vocab_size - 1}"
        raise bad("logit_bias", f"names token {unknown[0]}; {rule}")


def check_constraint(field: str, ids: Sequence[int], request: CompletionRequest, tokenizer: Tokenizer) -> None:
    """RequestError where the continuation of a prompt can't be held to what is asked for."""
    try:
        constraint_of(tokenizer, ids, request.config)
    except ValueError as error:
        key, _, what = str(error).partition(" ")
        name = request.schema if key == "json_schema" else key
        raise bad(name, f"{what.replace(' max_new_tokens=', f' {request.new_tokens}=')} ({field})") from None


def check_ids(field: str, ids: Sequence[Any], vocab_size: int) -> None:
    for token in ids:
        if not is_whole(token) or not 0 <= token < vocab_size:
            rule = f"this model's token ids are whole numbers from 0 to {vocab_size - 1}"
            raise bad(field, f"holds {shown(token)}; {rule}")


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def overhead_of(tokenizer: Tokenizer) -> int:
    """Tokens of a prompt beside those of its text: start and template."""
    return sum(map(len, tokenizer.prompt_parts))


def most_prompt_tokens(limits: LimitsConfig, positions: int) -> int:
    """The most tokens of a prompt."""
    return min(limits.prompt_tokens or positions, positions - 1)


def characters_of(tokens: int, tokenizer: Tokenizer) -> int:
    """The most characters that so many tokens can spell."""
    return tokens * max((len(piece.decode(errors="replace")) for piece in tokenizer.token_bytes.values()), default=1)


def bad(field: str, what: str) -> RequestError:
    """A 400; the message begins with the field."""
    return RequestError(400, f"{field} {what}", field.partition(" ")[0])


def too_long(field: str, found: str, most: int) -> RequestError:
    message = (
        f"{field} has {found}; this server takes up to {most} tokens (limits.prompt_tokens, the model's positions)"
    )
    return RequestError(400, message, field.partition(" ")[0], "context_length_exceeded")


def check_known(given: Iterable[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise RequestError(400, f"{shown(name)} isn't known here; there is {', '.join(known)}", name[:60])


def encodable(text: str) -> str:
    """JSON can carry half a surrogate pair into a message, but not out again."""
    return text.encode(errors="replace").decode()
