"""How text is sampled, and what generate and serve can be told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from .base import (
    JSON,
    LINES,
    MODEL,
    REMOVED,
    CommandConfig,
    ConfigError,
    extreme,
    not_positive,
    shown,
    too_small,
    unless,
)
from .guided.grammar import KEYS as GRAMMARS
from .guided.grammar import fault_of
from .verse.forms import FORMS

EXPECTED = {
    "int": "a whole number",
    "int | None": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str | None": "a text",
    "list[str]": "a text or a list of texts",
    "dict[str, float]": "a mapping of token ids to numbers, e.g. {5: -100}",
}
"""A generation parameter's type → what may be given for it, in words."""

TOKEN_ID = re.compile("0|[1-9][0-9]{0,11}")

MOST_BEAMS = 64
"""Each takes as much memory as a row."""

BIASED_TOKENS = 300
"""The most token ids in logit_bias, as OpenAI has it."""

CONSTRAINTS = ("form", *GRAMMARS)
"""Parameters that say what a text is held to while it is written."""


@dataclass
class GenerationConfig:
    """How text is sampled.

    In this order: logit_bias, repetition_penalty, presence_penalty and frequency_penalty, what the text is held to
    (form, json_schema or regex), temperature, top_k, top_p, min_p.
    """

    max_new_tokens: int = 128
    """The most tokens to generate."""
    temperature: float = 1.0
    """Divides the logits; 0: greedy, the most likely token each time."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities reach p (nucleus)."""
    min_p: float = 0.0
    """Sample among tokens that are at least so many times as likely as the likeliest; 0: all, 1: it alone."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that already stand in the text less likely (CTRL's formula)."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that was written (OpenAI's formula; the prompt doesn't count); -2 to 2."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time that it was written (OpenAI's formula); -2 to 2."""
    logit_bias: dict[str, float] = field(default_factory=dict)
    """Token id → what is added to its logit, e.g. {5: -100}; -100: never written, 100: nothing else is."""
    seed: int | None = None
    """Makes sampling repeatable: the same prompt, parameters and seed give the same text."""
    stop: list[str] = field(default_factory=list, metadata=LINES)
    """Texts that end the generation; they are not part of the result."""
    num_beams: int = 1
    """Above 1: beam search with so many beams for the likeliest text, as summaries are often written; nothing is drawn,
    so temperature, top_k, top_p, min_p and seed have no effect. Not on the server."""
    length_penalty: float = 1.0
    """Of beam search: a text's log-probability is divided by its length to this power; the higher, the longer texts."""
    form: str | None = None
    """A form of verse that the text keeps, with what it continues: 五绝, 七绝, 五律, 七律, or a 词牌: 渔歌子, 忆江南,
    如梦令, 浣溪沙, 采桑子, 卜算子, 菩萨蛮. Lines, rhyme (平水韵) and end; unset: any text."""
    tones: bool = False
    """Whether `form` fixes the tones (平仄) of all characters too, not only of those that rhyme."""
    json_schema: str | None = field(default=None, metadata=JSON)
    """A JSON schema: what is written is JSON that keeps it, e.g. '{"type": "object"}'; in files and from Python a
    mapping, too. Needs moyun[guided]."""
    regex: str | None = None
    """A regular expression (Rust's syntax) that what is written matches as a whole, e.g. '[一-龥]{5}，'. Needs
    moyun[guided]."""

    @classmethod
    def parse(cls, given: Mapping[str, Any], defaults: GenerationConfig | None = None) -> GenerationConfig:
        """Checks names, types and ranges of what a caller or a client gives.

        Args:
            given: parameter → value; NumPy's scalars and arrays will do, and one text for `stop`.
            defaults: the values of what isn't given.

        Raises:
            ConfigError: each complaint begins with the parameter's name and says what it must be.
        """
        types = {entry.name: str(entry.type) for entry in fields(cls)}
        values = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in given.items()}
        if isinstance(schema := values.get("json_schema"), Mapping):
            values["json_schema"] = as_json("json_schema", schema)
        for name, value in values.items():
            if name not in types:
                remedy = REMOVED.get(name, f"there is {', '.join(types)}")
                raise ConfigError([f"{name} is no generation parameter; {remedy}"])
            if not fits(value, types[name]):
                null = "must not be null; leave it out for the default"
                expected = f"must be {EXPECTED[types[name]]}, not {shown(value)}"
                raise ConfigError([f"{name} {null if value is None else expected}"])
        if "stop" in values:
            values["stop"] = [values["stop"]] if isinstance(values["stop"], str) else list(values["stop"])
        if "logit_bias" in values:  # as JSON has it: what travels as a tree has texts as keys everywhere
            values["logit_bias"] = {str(token): bias for token, bias in values["logit_bias"].items()}
        result = replace(defaults or cls(), **values)
        if complaints := [*result.complaints()] or [*extreme(result)]:
            raise ConfigError(complaints)
        return result

    @property
    def biases(self) -> dict[int, float]:
        """logit_bias by ids that are numbers."""
        return {int(token): bias for token, bias in self.logit_bias.items()}

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 1, "max_new_tokens")
        if self.temperature != 0 and not 0.001 <= self.temperature <= 1000:  # also refuses NaN
            yield f"temperature ({self.temperature}) must be 0 (greedy) or from 0.001 to 1000"
        if self.top_k < 0:
            yield f"top_k ({self.top_k}) must be 0 (all tokens) or positive"
        if not 0 < self.top_p <= 1:
            yield f"top_p ({self.top_p}) must be above 0 and at most 1"
        if not 0 <= self.min_p <= 1:
            yield f"min_p ({self.min_p}) must be from 0 (all tokens) to 1"
        if not 0.01 <= self.repetition_penalty <= 100:
            yield f"repetition_penalty ({self.repetition_penalty}) must be from 0.01 to 100 (1: none)"
        penalties = ("presence_penalty", "frequency_penalty")
        yield from unless(lambda value: -2 <= value <= 2, "from -2 to 2", self, penalties)
        if len(self.logit_bias) > BIASED_TOKENS:
            yield f"logit_bias has {len(self.logit_bias)} token ids; there may be {BIASED_TOKENS}"
        for token, bias in self.logit_bias.items():
            if not TOKEN_ID.fullmatch(str(token)) or not -100 <= bias <= 100:
                yield f"logit_bias must map token ids to numbers from -100 to 100, not {shown(token)} to {bias}"
                break
        if self.seed is not None and not 0 <= self.seed < 2**63:
            yield f"seed ({self.seed}) must be from 0 to 2^63-1"
        if any(not text for text in self.stop):
            yield "stop must not hold an empty text"
        if not 1 <= self.num_beams <= MOST_BEAMS:
            yield f"num_beams ({self.num_beams}) must be from 1 (none) to {MOST_BEAMS}"
        if not -10 <= self.length_penalty <= 10:
            yield f"length_penalty ({self.length_penalty}) must be from -10 to 10 (1: none)"
        if self.length_penalty != 1 and self.num_beams == 1:
            yield f"length_penalty ({self.length_penalty}) belongs to beam search: give num_beams too"
        if self.form is not None and self.form not in FORMS:
            yield f"form ({shown(self.form)}) must be one of {', '.join(FORMS)}"
        if self.tones and self.form is None:
            yield f"tones are kept in a form of verse: give form too, one of {', '.join(FORMS)}"
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) > 1:
            yield f"{' and '.join(given)} exclude each other: a text is held to one of them"
            return
        for name in given:
            if name in GRAMMARS and (fault := fault_of(name, getattr(self, name))):
                yield f"{name} {fault}"


def as_json(name: str, value: Any) -> str:
    """A mapping as the text that a key of JSON holds. ConfigError where something in it isn't JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, default=dict)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError([f"{name} isn't JSON ({error})"]) from None


def fits(value: Any, kind: str) -> bool:
    """Whether a value can stand for a parameter of this type (a key of EXPECTED)."""
    if kind == "list[str]":
        texts = [value] if isinstance(value, str) else value
        return isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)
    if kind == "dict[str, float]":
        return isinstance(value, Mapping) and all(
            TOKEN_ID.fullmatch(str(token)) and fits(bias, "float") for token, bias in value.items()
        )
    if value is None:
        return kind.endswith("| None")
    if kind in ("bool", "str | None"):
        return isinstance(value, bool if kind == "bool" else str)
    return isinstance(value, int | float if kind == "float" else int) and not isinstance(value, bool)


@dataclass
class LimitsConfig:
    """What one request may ask for, and how much may be under way. What is over a limit is refused before any work."""

    batch_rows: int = 16
    """Prompts that are continued at once; the more, the more text a second and the longer each waits for its own."""
    queue_rows: int = 32
    """Prompts that may wait for a place in the batch; what comes beyond gets 503 with Retry-After at once."""
    request_rows: int = 32
    """Prompts in one request."""
    body_bytes: int = 1048576
    """Bytes of a request's body."""
    prompt_tokens: int | None = None
    """Tokens of a prompt; unset: as many as the model has positions, but one to write to."""
    prefix_tokens: int | None = None
    """Tokens of recent prompts and texts whose keys and values are kept, so that a prompt that begins like one of them
    is read from there on; unset: as many as take half as many numbers as the model has (base: 2,800); 0: none."""
    max_new_tokens: int = 1024
    """The highest max_new_tokens (max_tokens) that a request may ask for."""
    request_seconds: float = 60.0
    """From the end of a request's headers, for which there are 10 s, to its answer's last byte; what takes longer is
    stopped and gets 504."""
    drain_seconds: float = 30.0
    """After SIGTERM: how long requests that were accepted may still take."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 1, "batch_rows", "queue_rows", "request_rows")
        yield from too_small(self, 1, "body_bytes", "prompt_tokens", "max_new_tokens")
        yield from too_small(self, 0, "prefix_tokens")
        yield from not_positive(self, "request_seconds", "drain_seconds")
        if self.request_rows > self.queue_rows:
            yield f"request_rows ({self.request_rows}) is over queue_rows ({self.queue_rows}): it could never be queued"


HOST_NAME = re.compile(r"[\w.-]+|\[?[\da-f:.]*:[\da-f:.]*:[\da-f:.]*\]?", re.ASCII | re.IGNORECASE)
"""A name or an address, as a request's Host has them, or an IPv6 address without its brackets."""


@dataclass
class ServeConfig(CommandConfig):
    """A model behind HTTP: OpenAI's completions and MLflow's invocations, many requests in one running batch."""

    model: str = field(default="models:/moyun@champion", metadata=MODEL)
    """A model folder or a models:/ URI; it is verified before anything is served."""
    name: str | None = None
    """What clients call it, in OpenAI's `model`; unset: its name in the registry, or the folder's."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: every network. Nothing is encrypted, and nobody is asked who they are unless
    the variable MOYUN_API_KEY of the environment holds an API key (docs/serving.md)."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Names by which clients may call the server (in a request's Host) beside its address and localhost, e.g.
    [poems.example.org]; ["*"]: any, for a proxy in front that checks them."""
    port: int = 8000
    """Port to listen on; 0: any free one."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format to compute in; auto: the one that the model is stored in (float16 only on a GPU).

    int8: 8-bit weights and products, on a CPU only; the fastest, and a quarter of float32's memory."""
    follow_seconds: float = 30.0
    """Between two looks at where the alias of `model` points (models:/NAME@ALIAS); another version is loaded beside the
    one that serves, and takes over when it is ready. About as long as it takes to load. 0: never."""
    traces: float = 0.0
    """Share of the requests, from 0 (none) to 1 (all), whose prompts and texts are kept as traces in the experiment
    that `tracking` names. Above 0 clients can rate texts too (POST /v1/feedback), each of which then has a trace."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def complaints(self) -> Iterator[str]:
        yield from unless(
            lambda value: 0 <= value < 10**9, "0 (never) or a number of seconds", self, ("follow_seconds",)
        )
        if not 0 <= self.port < 2**16:
            yield f"port ({self.port}) must be from 0 to 65535"
        yield from unless(lambda value: 0 <= value <= 1, "from 0 (none) to 1 (all requests)", self, ["traces"])
        if not self.host:
            yield "host must not be empty; 127.0.0.1 is this machine alone, 0.0.0.0 every network it is in"
        for name in self.allowed_hosts:
            if not HOST_NAME.fullmatch(name) and self.allowed_hosts != ["*"]:
                yield (
                    f"allowed_hosts has {shown(name)}: give names or addresses, [poems.example.org, 10.0.0.5], without "
                    'http:// and port, in ASCII, or ["*"] alone for any'
                )
