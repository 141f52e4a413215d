"""Text in, text out: a tokenizer, a decoder and sampling behind one object."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..config.base import shown
from ..config.generation import CONSTRAINTS, GenerationConfig
from ..model.decoder import Decoder
from ..model.decoding.batch_rows import Rows, check_biases, start
from ..model.decoding.beam_search import beam_search
from ..model.decoding.token_scores import Scores, TokenScore
from ..model.sampling import generate, prefill
from ..tokenizer.lost_text import loses, lost_named
from ..tokenizer.tokenizer import Tokenizer
from .given_texts import Asked, Given, as_text, encode_asked, is_one, texts_of
from .row_constraints import RowConstraint, constraint_of, require_constraints

logger = logging.getLogger("moyun.generation")


@dataclass(frozen=True)
class Continuation:
    text: str
    """What was generated, without the prompt."""
    tokens: int
    stopped: bool
    """Whether end-of-text or a stop text ended it, and not max_new_tokens or the model's last position."""
    scores: Sequence[TokenScore] = ()
    """Log-probabilities of its tokens, a stop text's and the end-of-text that ended it too, where they were wanted."""


class TextGenerator:
    """Continues texts: generator(text) gives {"text": …}, generator([text, …]) a list of them in order.

    A text may also stand in a dict, under "text" or "src_txt", as rows have it. A list of {"role": …, "content": …}
    is a conversation, which is answered as the server's chat answers it; it may stand in a dict, under "messages".
    The text is the prompt and its continuation; of a conversation, and of a model tuned on src_txt → tgt_txt
    pairs, it is the answer alone. `return_full_text` overrides either.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, defaults: GenerationConfig | None = None) -> None:
        """defaults: parameters of every call that doesn't give its own. ValueError for a logit_bias of no token."""
        self.decoder = decoder.eval()
        self.tokenizer = tokenizer
        self.defaults = defaults or GenerationConfig()
        check_biases(self.defaults, tokenizer.vocab_size)
        self.looked_at: set[str] = set()
        """Stop texts that were warned of, or needn't be."""
        self.told_of_cut = False

    @property
    def returns_full_text(self) -> bool:
        """Whether results begin with the prompt unless told otherwise."""
        return self.tokenizer.prompt_template is None

    def __call__(
        self, text: Given | Iterable[Given], *, return_full_text: bool | None = None, **parameters: Any
    ) -> Any:
        config = GenerationConfig.parse(parameters, self.defaults)
        one = is_one(text)
        texts = texts_of([text] if one else text)
        self.note_lost(texts)
        for prompt in self.encode(texts) if any(getattr(config, key) for key in CONSTRAINTS) else ():
            self.constraint_of(prompt, config)
        results = []
        for asked, row in zip(texts, self.write(texts, config), strict=True):
            full = self.returns_full_text and isinstance(asked, str) if return_full_text is None else return_full_text
            results.append({"text": as_text(asked) * full + row.text})
        return results[0] if one else results

    def write(self, texts: Sequence[Asked], config: GenerationConfig | None = None) -> list[Continuation]:
        """The continuation of each text, in order."""
        return self.write_ids(self.encode(texts), config)

    def samples(self, prompts: Sequence[str], config: GenerationConfig | None = None) -> list[dict[str, Any]]:
        """For tables: of each prompt {"prompt", "text", "stopped": whether it ended by itself}."""
        return [
            {"prompt": prompt, "text": prompt * self.returns_full_text + row.text, "stopped": row.stopped}
            for prompt, row in zip(prompts, self.write(prompts, config), strict=True)
        ]

    def write_ids(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig | None = None, logprobs: int | None = None
    ) -> list[Continuation]:
        """The continuation of each prompt of token ids, all in one batch.

        logprobs: tell the tokens' log-probabilities too, and so many of the likeliest tokens beside each.
        """
        pieces: list[list[str]] = [[] for _ in prompts]
        scores = [None if logprobs is None else Scores(logprobs) for _ in prompts]
        stream = self.stream_ids(prompts, config or self.defaults, scores)
        while True:
            try:
                row, piece = next(stream)
            except StopIteration as end:
                return [
                    Continuation("".join(part), writer.tokens, writer.ended, score.found if score else ())
                    for part, writer, score in zip(pieces, end.value, scores, strict=True)
                ]
            pieces[row].append(piece)

    def stream(self, text: Given, **parameters: Any) -> Iterator[str]:
        """The continuation of one text, piece by piece; never half a character, never part of a stop text.

        Parameters are checked at once, and whether the text can keep to what is asked for.
        """
        texts, config = texts_of([text]), GenerationConfig.parse(parameters, self.defaults)
        self.note_lost(texts)
        prompts = self.encode(texts)
        self.constraint_of(prompts[0], config)
        return (piece for _, piece in self.stream_ids(prompts, config))

    def score_ids(self, prompts: Sequence[Sequence[int]], top: int = 0) -> list[list[TokenScore]]:
        """Log-probabilities of each prompt's own tokens; nothing is written. top: of the likeliest beside each."""
        scores = [Scores(top, range(len(prompt))) for prompt in prompts]
        if prompts:
            with torch.no_grad():
                prefill(self.decoder, prompts, None, scores)
        return [score.found for score in scores]

    def stream_ids(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig, scores: Sequence[Scores | None] = ()
    ) -> Generator[tuple[int, str], None, list[Writer]]:
        """Yields (row, piece of text) as they come; returns each row's Writer."""
        if not prompts:
            return []
        positions = self.decoder.config.max_position_embeddings
        most = [min(config.max_new_tokens, positions - len(prompt)) for prompt in prompts]
        for text in [text for text in config.stop if text not in self.looked_at and loses(text, self.tokenizer)]:
            logger.warning("generation.stop: this model's tokenizer loses part of %r, so no text will end there", text)
        self.looked_at |= set(config.stop)
        writers = [Writer(self.tokenizer, config.stop, tokens) for tokens in most]
        constraints = [constraint_of(self.tokenizer, prompt, config) for prompt in prompts]
        end_of_text_id = self.tokenizer.end_of_text_id
        if config.num_beams > 1:
            if any(scores):
                raise ValueError("num_beams doesn't go with log-probabilities: ask for them with num_beams=1")
            rows = start(self.decoder, prompts, [config] * len(prompts), constraints=constraints)
            tokens = self.search(rows, config)
        else:
            tokens = generate(self.decoder, prompts, config, end_of_text_id, scores, constraints)
        yield from write_pieces(tokens, writers)
        for writer, constraint in zip(writers, constraints, strict=True):
            if constraint and constraint.given_up:
                writer.most = writer.tokens
        if any(constraints) and not all(writer.ended for writer in writers) and not self.told_of_cut:
            self.told_of_cut = True
            held_to = next(key for key in CONSTRAINTS if getattr(config, key))
            logger.warning(
                "a text was cut before it came to its end, and may not keep its %s: max_new_tokens is %d, and the "
                "model has %d positions for prompt and answer", held_to, config.max_new_tokens, positions
            )  # fmt: skip
        return writers

    def constraint_of(self, prompt: Sequence[int], config: GenerationConfig) -> RowConstraint | None:
        """What a prompt's continuation is held to. ValueError where there can't be such a one."""
        return constraint_of(self.tokenizer, prompt, config, self.decoder.config.max_position_embeddings - len(prompt))

    def search(self, rows: Rows, config: GenerationConfig) -> Generator[tuple[int, int | None], int | None]:
        """As `generate`, by beam search: tokens come when all rows have been written."""

        def stops(ids: list[int]) -> bool:
            text = self.tokenizer.decode(ids) if config.stop else ""
            return any(stop in text for stop in config.stop)

        for number, ids in enumerate(beam_search(self.decoder, rows, self.tokenizer.end_of_text_id, stops)):
            for token in ids:
                yield number, token
            yield number, None

    def note_lost(self, prompts: Sequence[Asked]) -> None:
        """Warns of what the model won't see of some prompts."""
        if lost := lost_named([*map(as_text, prompts)], self.tokenizer):
            logger.warning("the model doesn't see all of the prompt: its tokenizer loses %s", lost)

    def encode(self, texts: Sequence[Asked]) -> list[list[int]]:
        """The prompt of each text. Raises ValueError for what is no text."""
        return [encode_asked(asked, self.tokenizer) for asked in texts_of(texts)]


def require_room(
    key: str, prompts: Sequence[str], tokenizer: Tokenizer, positions: int, config: GenerationConfig
) -> None:
    """ValueError naming the first of a key's prompts that leaves the model no position to write to, or whose
    continuation can't keep to what the config asks for.
    """
    for prompt in prompts:
        tokens = len(tokenizer.encode_prompt(prompt))
        if not 0 < tokens < positions:
            raise ValueError(
                f"{key} holds {shown(prompt)}, {tokens:,} tokens, and the model has {positions:,} positions for prompt "
                f"and continuation: {'shorten it' if tokens else 'leave it out'}"
            )
    require_constraints(prompts, tokenizer, config, key)


def write_pieces(
    tokens: Generator[tuple[int, int | None], int | None], writers: Sequence[Writer]
) -> Iterator[tuple[int, str]]:
    """Turns (row, token) from `generate` into (row, piece of text), and ends a row whose stop text has come."""
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
    """Turns a row's tokens into text as soon as it is final: whole characters, and no beginning of a stop text."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], most: int = 0) -> None:
        """most: how many tokens the row may have; only `ended` needs it."""
        self.decoder = tokenizer.incremental_decoder()
        self.stop = stop
        self.most = most
        self.tokens = 0
        self.pending = ""
        self.stopped = False

    @property
    def ended(self) -> bool:
        """Whether the row ended by itself or at a stop text, and not because it had all its tokens."""
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
    """How many of the last characters of `text` may be the first of `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if stop.startswith(text[-n:])), 0)
