"""Text in, text out: tokenizer, decoder and sampling behind one object. Pipelines, samples and serving use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.generation import GenerationConfig
from ..config.loader import ConfigError, validate
from ..model.decoder import Decoder
from ..model.sampling import generate
from ..tokenizer.tokenizer import Tokenizer
from .llama_cpp import LlamaCpp


def generation_config(defaults: GenerationConfig | None = None, **parameters: Any) -> GenerationConfig:
    """`defaults` with `parameters` over them, validated; ValueError naming the parameter."""
    known = {field.name: field for field in dataclasses.fields(GenerationConfig)}
    for name, value in parameters.items():
        if name not in known:
            raise ConfigError([f"{name} is no generation parameter; there is {', '.join(known)}"])
        complaint = type_complaint(name, value)
        if complaint:
            raise ConfigError([complaint])
    stop = parameters.get("stop")
    if isinstance(stop, str):
        parameters["stop"] = [stop]
    config = dataclasses.replace(defaults or GenerationConfig(), **parameters)
    validate(config)
    return config


def type_complaint(name: str, value: Any) -> str | None:
    if name == "stop":
        texts = [value] if isinstance(value, str) else value
        fine = isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)
        expected = "a text or a list of texts"
    elif name in ("max_new_tokens", "top_k", "seed"):
        fine = (isinstance(value, int) and not isinstance(value, bool)) or (name == "seed" and value is None)
        expected = "a whole number"
    else:
        fine = isinstance(value, int | float) and not isinstance(value, bool)
        expected = "a number"
    return None if fine else f"{name} must be {expected}, not {value!r}"


@dataclass(frozen=True)
class Continuation:
    text: str
    """What was generated, without the prompt."""
    tokens: int
    stopped: bool
    """By itself or at a stop text; not at max_new_tokens or the model's last position."""


class TextGenerator:
    """generator(text) → {"text": …}; a list of texts gives a list, in order.

    The text is the prompt and its continuation; of a model tuned on src_txt → tgt_txt pairs it is the answer
    alone. `return_full_text` overrides either.
    """

    def __init__(
        self, decoder: Decoder | LlamaCpp, tokenizer: Tokenizer, defaults: GenerationConfig | None = None
    ) -> None:
        self.decoder = decoder if isinstance(decoder, LlamaCpp) else decoder.eval()
        self.tokenizer = tokenizer
        self.defaults = defaults or GenerationConfig()

    def __call__(self, text: str | Sequence[str], *, return_full_text: bool | None = None, **parameters: Any) -> Any:
        config = generation_config(self.defaults, **parameters)
        texts = [text] if isinstance(text, str) else list(text)
        full = self.tokenizer.prompt_template is None if return_full_text is None else return_full_text
        written = self.write(texts, config)
        results = [{"text": (prompt if full else "") + row.text} for prompt, row in zip(texts, written, strict=True)]
        return results[0] if isinstance(text, str) else results

    def write(self, texts: Sequence[str], config: GenerationConfig | None = None) -> list[Continuation]:
        """What follows each text, and whether it ended by itself."""
        pieces: list[list[str]] = [[] for _ in texts]
        stream = self.stream_batch(texts, config or self.defaults)
        while True:
            try:
                row, piece = next(stream)
            except StopIteration as end:
                return [
                    Continuation("".join(part), writer.tokens, writer.ended)
                    for part, writer in zip(pieces, end.value, strict=True)
                ]
            pieces[row].append(piece)

    def stream(self, text: str, **parameters: Any) -> Iterator[str]:
        """The continuation of one text, piece by piece; never half a character, never part of a stop text."""
        for _, piece in self.stream_batch([text], generation_config(self.defaults, **parameters)):
            yield piece

    def stream_batch(
        self, texts: Sequence[str], config: GenerationConfig
    ) -> Generator[tuple[int, str], None, list[Writer]]:
        """(row, piece) as they come; returns what wrote each row."""
        if not texts:
            return []
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"text {row} must be a text, not {text!r}")
        prompts = [self.tokenizer.encode_prompt(text) for text in texts]
        positions = self.decoder.config.max_position_embeddings
        most = [min(config.max_new_tokens, positions - len(prompt)) for prompt in prompts]
        writers = [Writer(self.tokenizer, config.stop, tokens) for tokens in most]
        end = self.tokenizer.end_of_text_id
        if isinstance(self.decoder, LlamaCpp):
            tokens = self.decoder.generate(prompts, config, end)
        else:
            tokens = generate(self.decoder, prompts, config, end)
        yield from write_pieces(tokens, writers)
        return writers


def write_pieces(
    tokens: Generator[tuple[int, int | None], int | None], writers: Sequence[Writer]
) -> Iterator[tuple[int, str]]:
    """(row, token) of `generate` → (row, piece of text); a row whose stop text has come is ended."""
    reply: int | None = None
    while True:
        try:
            row, token = tokens.send(reply)
        except StopIteration:
            return
        piece = writers[row].flush() if token is None else writers[row].push(token)
        reply = row if writers[row].stopped and token is not None else None
        if piece:
            yield row, piece


class Writer:
    """Tokens → text that is certain: whole characters, and nothing that may yet become a stop text."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], most: int = 0) -> None:
        """most: tokens that it may write; needed by who asks afterwards whether it ended before."""
        self.decoder = tokenizer.incremental_decoder()
        self.stop = stop
        self.most = most
        self.tokens = 0
        self.pending = ""
        self.stopped = False

    @property
    def ended(self) -> bool:
        """Whether what it wrote ended by itself or at a stop text, and not because it might write no more."""
        return self.stopped or self.tokens < self.most

    def push(self, token: int) -> str:
        self.tokens += 1
        return self.release(self.decoder.push(token), final=False)

    def flush(self) -> str:
        return self.release(self.decoder.flush(), final=True)

    def release(self, piece: str, final: bool) -> str:
        if self.stopped:
            return ""
        self.pending += piece
        found = [at for at in (self.pending.find(text) for text in self.stop) if at >= 0]
        if found:
            self.stopped = True
            return self.pending[: min(found)]
        held = 0 if final else max((overlap(self.pending, text) for text in self.stop), default=0)
        out, self.pending = self.pending[: len(self.pending) - held], self.pending[len(self.pending) - held :]
        return out


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if stop.startswith(text[-n:])), 0)
