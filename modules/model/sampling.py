"""The generation loop with its KV cache, and sampling; torch only. Letters as in decoder.py.

A row's tokens depend on its prompt, the parameters and the seed alone, never on the rows beside it: prompts are
laid end to end for the first pass (no padding), each row has positions and a random generator of its own, a
finished row leaves the batch, and new ones may join it (server/engine.py).
"""

from __future__ import annotations

import hashlib
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


@dataclass
class Rows:
    """The rows still being written; index i of every list is one row."""

    numbers: list[int]
    """The index of each in the caller's list."""
    ids: list[list[int]]
    """Prompt and the tokens generated so far."""
    generators: list[torch.Generator]
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


def generator_of(prompt: Sequence[int], seed: int | None) -> torch.Generator:
    """A row's random generator, seeded by prompt and seed: by the seed alone, all rows would draw alike.

    It is on the CPU whatever the device, so that the same prompt and seed give the same text.
    """
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        digest = hashlib.blake2b(repr((seed, list(prompt))).encode(), digest_size=8).digest()
        generator.manual_seed(int.from_bytes(digest, "little"))
    return generator


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
    """logits (B, V) → a token id a row; rows with the same parameters are drawn together."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for i, config in enumerate(rows.configs):
        key = (config.temperature, config.top_k, config.top_p, config.repetition_penalty)
        groups.setdefault(key, []).append(i)
    if len(groups) == 1:
        return draw(logits, rows, rows.configs[0], end_of_text_id)
    tokens = [0] * len(rows.configs)
    for indices in groups.values():
        drawn = draw(logits[indices], rows.select(indices), rows.configs[indices[0]], end_of_text_id)
        for i, token in zip(indices, drawn, strict=True):
            tokens[i] = token
    return tokens


def draw(logits: Tensor, rows: Rows, config: GenerationConfig, end_of_text_id: int) -> list[int]:
    """`sample` with one config for all rows. End-of-text is never penalized: it may also start a text."""
    logits = logits.float()
    if config.repetition_penalty != 1.0:
        written = [[token for token in ids if token != end_of_text_id] for ids in rows.ids]
        logits = penalize(logits, written, config.repetition_penalty)
    if config.temperature == 0:
        return logits.argmax(-1).tolist()
    probabilities = filtered(logits / config.temperature, config.top_k, config.top_p).softmax(-1).cpu()
    return [
        int(torch.multinomial(row, 1, generator=generator))
        for row, generator in zip(probabilities, rows.generators, strict=True)
    ]


def penalize(logits: Tensor, ids: list[list[int]], penalty: float) -> Tensor:
    """CTRL's repetition penalty (Keskar et al. 2019): ÷ penalty where positive, × where negative."""
    logits = logits.clone()
    for row, seen in zip(logits, ids, strict=True):
        if not seen:
            continue
        index = torch.tensor(sorted(set(seen)), device=logits.device)
        scores = row[index]
        row[index] = torch.where(scores > 0, scores / penalty, scores * penalty)
    return logits


def filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (B, V) with all but the k likeliest, then all beyond the nucleus of mass p, at -inf."""
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        mass = ordered.softmax(-1)
        beyond = mass.cumsum(-1) - mass >= top_p  # the token that reaches p stays
        beyond[:, 0] = False  # also where p is 0 in float32
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), float("-inf"))
    return logits
