"""The generation loop with its KV cache, and sampling; torch only. Letters as in decoder.py.

A row's tokens depend on its prompt, the parameters and the seed alone, never on the rows beside it: prompts are
laid end to end for the first pass (no padding), each row has positions and a random generator of its own, a
finished row leaves the batch, and new ones may join it (server/engine.py).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .decoder import Decoder
from .kv_cache import KVCache

if TYPE_CHECKING:
    from ..config.generation import GenerationConfig

UNIT = 2**48
"""Weight of probability 1. Weights are whole numbers, of which sums are exact: a draw depends neither on the order in
which a device adds up nor on the rows beside it, and no rounding gives a token of probability 0 a share."""

CANDIDATES = 512
"""How many of the likeliest tokens are sorted on a CPU for top_p before all are: 0.06 ms where 21,128 take 1.4."""


@dataclass
class Rows:
    """The rows still being written; index i of every list is one row."""

    numbers: list[int]
    """The index of each in the caller's list."""
    ids: list[list[int]]
    """Prompt and the tokens generated so far."""
    generators: list[random.Random]
    remaining: list[int]
    """Tokens that may still be generated."""
    configs: list[GenerationConfig]

    def select(self, indices: list[int]) -> Rows:
        return Rows(*([member[i] for i in indices] for member in vars(self).values()))

    def extend(self, others: Rows) -> None:
        for name, member in vars(self).items():
            member.extend(getattr(others, name))

    @property
    def capacity(self) -> int:
        """Positions that the longest of them may come to."""
        return max(len(ids) + n for ids, n in zip(self.ids, self.remaining, strict=True))


@torch.no_grad()  # not inference mode: what it makes of spread weights could not be trained on afterwards
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig | Sequence[GenerationConfig],
    end_of_text_id: int,
) -> Generator[tuple[int, int | None], int | None]:
    """Continues every prompt; yields (row, token id) as they come, and (row, None) when a row has ended.

    A row ends with end-of-text (which isn't yielded), after max_new_tokens, or at the model's last position.
    `.send(row)` instead of next() ends that row early: a stop text was found, or its reader has gone.
    All rows share a config, or each has its own.
    Raises ValueError for a prompt that is empty, or leaves no position to write to.
    """
    rows = start(decoder, prompts, config if isinstance(config, Sequence) else [config] * len(prompts))
    cache = KVCache(len(prompts), rows.capacity, decoder.word_embeddings.weight.device)
    logits = prefill(decoder, prompts, cache)
    yield from write(rows, logits, partial(decode_step, decoder, cache), end_of_text_id)


def write(
    rows: Rows, logits: Tensor, advance: Callable[[Rows, list[int]], Tensor], end: int
) -> Generator[tuple[int, int | None], int | None]:
    """The loop of `generate`, whatever computes the logits; yields what it yields.

    logits: (B, V) of each row's first new token. advance: (rows, left) → logits (B, V) of the next tokens; left:
    indices of the rows that haven't ended, in their new order (`moved_up`). It may append rows to both.
    """
    while True:
        ended: set[int] = set()
        for i, token in enumerate(sample(logits, rows, end)):
            number = rows.numbers[i]
            rows.ids[i].append(token)
            rows.remaining[i] -= 1
            stopped = None if token == end else (yield number, token)
            if token == end or stopped == number or rows.remaining[i] == 0:
                ended.add(i)
                yield number, None
        left = moved_up(len(rows.ids), ended)
        if not left:
            return
        rows = rows.select(left)
        logits = advance(rows, left)


def moved_up(count: int, ended: set[int]) -> list[int]:
    """Indices of the rows left of `count`: the last rows take the places of those that ended, the others stay.

    So few rows of a cache have to be moved.
    """
    left = count - len(ended)
    last = [i for i in range(left, count) if i not in ended]
    return [last.pop() if i in ended else i for i in range(left)]


def start(decoder: Decoder, prompts: Sequence[Sequence[int]], configs: Sequence[GenerationConfig]) -> Rows:
    """Rows of these prompts, nothing written yet. Raises ValueError as `generate` does."""
    limit = decoder.config.max_position_embeddings
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {number} is empty: give at least one token")
        if len(prompt) >= limit:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, but the model has only {limit} positions "
                "(max_position_embeddings) for prompt and answer: shorten it"
            )
    generators = [generator_of(ids, config.seed) for ids, config in zip(prompts, configs, strict=True)]
    remaining = [min(config.max_new_tokens, limit - len(ids)) for ids, config in zip(prompts, configs, strict=True)]
    return Rows(list(range(len(prompts))), [list(ids) for ids in prompts], generators, remaining, list(configs))


def generator_of(prompt: Sequence[int], seed: int | None) -> random.Random:
    """A row's random generator, seeded by prompt and seed: by the seed alone, all rows would draw alike.

    Python's own, whatever the device: the same prompt and seed give the same text, and a number costs 0.05 µs.
    """
    if seed is None:
        return random.Random()
    return random.Random(hashlib.blake2b(repr((seed, list(prompt))).encode(), digest_size=8).digest())


def prefill(decoder: Decoder, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Runs all prompts through the decoder in one pass, fills the cache, returns next-token logits (B, V)."""
    device = decoder.word_embeddings.weight.device
    lengths = [len(prompt) for prompt in prompts]
    flat = torch.tensor([[token for prompt in prompts for token in prompt]], device=device)  # (1, N)
    last = torch.tensor(lengths, device=device).cumsum(0) - 1
    return decoder(flat, lengths, cache, head=lambda hidden, weight: decoder.head(hidden[0, last], weight))


def decode_step(decoder: Decoder, cache: KVCache, rows: Rows, left: list[int]) -> Tensor:
    """Next-token logits (B, V) of `rows`, from the last id of each; `left`: their indices in the cache."""
    if len(left) < len(cache.lengths):
        cache.select(left)
    last = torch.tensor([[ids[-1]] for ids in rows.ids], device=cache.lengths.device)
    return decoder(last, cache=cache)[:, -1]


def sample(logits: Tensor, rows: Rows, end_of_text_id: int) -> list[int]:
    """logits (B, V) → a token id a row. Raises FloatingPointError where probabilities aren't numbers."""
    sampler = Sampler(rows.configs, rows.ids, end_of_text_id, logits.shape[-1], logits.device)
    uniforms = torch.tensor([[generator.random()] for generator in rows.generators], dtype=torch.float64)
    return checked(sampler(logits, uniforms.to(logits.device)).tolist())


def checked(tokens: list[int]) -> list[int]:
    """Raises FloatingPointError where a token couldn't be chosen."""
    if min(tokens) < 0:
        raise FloatingPointError(
            "the model's next-token probabilities aren't numbers (NaN): its weights are damaged, "
            "or their number format is too small for it; try another dtype"
        )
    return tokens


class Sampler:
    """Chooses the next token of each row on the device where the logits are, with one random number a row.

    Parameters are columns, (B, 1): rows with different ones are drawn together.
    """

    def __init__(
        self,
        configs: Sequence[GenerationConfig],
        ids: Sequence[Sequence[int]],
        end_of_text_id: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        """ids: what stands in each row already; the repetition penalty is for these."""
        column = lambda values, dtype: torch.tensor(values, dtype=dtype, device=device)[:, None]  # noqa: E731
        greedy = [config.temperature == 0 for config in configs]
        top_k = [min(config.top_k, vocab_size) for config in configs]
        top_p = [config.top_p if config.top_p < 1 else 0.0 for config in configs]
        self.draws, self.mixed, self.nucleus = not all(greedy), any(greedy), any(top_p)
        self.greedy = column(greedy, torch.bool)
        self.temperature = column([config.temperature or 1.0 for config in configs], torch.float32)
        self.top_k, self.top_p = column(top_k, torch.int64), column(top_p, torch.float64)
        self.candidates = max(top_k)
        if self.nucleus:  # on a GPU all are sorted: to ask it whether a few suffice would take longer
            few = max(self.candidates, CANDIDATES) if device.type == "cpu" else vocab_size
            self.candidates = min(few, vocab_size)
        self.written: Tensor | None = None
        if any(config.repetition_penalty != 1 for config in configs):
            self.penalty = column([config.repetition_penalty for config in configs], torch.float32)
            longest = max(map(len, ids))  # shorter rows are filled up with a token of theirs: each counts once
            self.written = torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in ids], device=device)
        self.end_of_text_id = end_of_text_id

    def __call__(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """logits (B, V), uniforms (B, 1) float64 in [0, 1) → ids (B,), -1 where probabilities aren't numbers."""
        logits = logits.float()
        if self.written is not None:
            logits = penalize(logits, self.written, self.penalty, self.end_of_text_id)
        if not self.draws:
            return logits.argmax(-1)
        scaled = (logits / self.temperature).softmax(-1).mul_(UNIT)
        ids = draw(self.filtered(scaled, self.candidates) if self.candidates else scaled.long(), uniforms)
        return torch.where(self.greedy, logits.argmax(-1, keepdim=True), ids)[:, 0] if self.mixed else ids[:, 0]

    def filtered(self, scaled: Tensor, candidates: int) -> Tensor:
        """Weights (B, V) in which only the k likeliest tokens, and of them the nucleus of mass p, are above 0.

        Tokens that are just as likely as the last one kept stay too: no order among equals decides.
        scaled: probabilities × UNIT. candidates: how many of the likeliest to look at first; if a nucleus is larger,
        all are.
        """
        weights, likeliest = scaled.long(), scaled.topk(candidates).values.long()
        kth = torch.where(self.top_k > 0, likeliest.gather(-1, (self.top_k - 1).clamp(min=0)), 0)
        weights.masked_fill_(weights < kth, 0)
        if not self.nucleus:
            return weights
        likeliest.masked_fill_(likeliest < kth, 0)
        mass = likeliest.cumsum(-1)
        goal = weights.sum(-1, keepdim=True) * self.top_p
        if candidates < weights.shape[-1] and bool((mass[:, -1:] < goal).any()):
            return self.filtered(scaled, weights.shape[-1])
        beyond = mass - likeliest >= goal  # the token that reaches p stays
        lowest = likeliest.masked_fill_(beyond, UNIT).amin(-1, keepdim=True)
        return weights.masked_fill_(weights < torch.where(self.top_p > 0, lowest, 0), 0)


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse transform sampling: the first token whose cumulative weight exceeds uniform × total, (B, 1).

    weights: (B, V), overwritten.
    """
    mass = weights.cumsum_(-1)
    total = mass[:, -1:]
    found = torch.searchsorted(mass, (uniforms * total).long(), right=True)
    return torch.where(total > 0, found, -1)  # NaN became the lowest number there is, or 0


def penalize(logits: Tensor, written: Tensor, penalty: Tensor | float, end_of_text_id: int) -> Tensor:
    """CTRL's repetition penalty (Keskar et al. 2019) for the ids `written` (B, n): ÷ where positive, × where negative.

    End-of-text is never penalized: it may also start a text.
    """
    scores = logits.gather(-1, written)
    penalized = torch.where(scores > 0, scores / penalty, scores * penalty)
    return logits.scatter(-1, written, torch.where(written == end_of_text_id, scores, penalized))
