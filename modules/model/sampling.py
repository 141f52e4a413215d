"""The generation loop with its KV cache, and sampling; torch only. Letters as in decoder.py.

A row's tokens depend on its prompt, the parameters and the seed alone, never on the rows beside it: prompts are
laid end to end for the first pass (no padding), each row has positions and a random generator of its own, a
finished row leaves the batch, and new ones may join it (server/engine.py).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .attention import Layout, attention_kernels
from .decoder import Decoder
from .decoding.constraints import Constraint
from .decoding.prefix_cache import PrefixCache, beginnings
from .decoding.sampler import Sampler, checked
from .decoding.token_scores import Measured, Scores, before_wanted, measure_prompts
from .decoding.upload import upload
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
    generators: list[random.Random]
    remaining: list[int]
    """Tokens that may still be generated."""
    configs: list[GenerationConfig]
    scores: list[Scores | None] = field(default_factory=list)
    """Of rows whose log-probabilities are wanted; the batch fills them."""
    prompt_lengths: list[int] = field(default_factory=list)
    constraints: list[Constraint | None] = field(default_factory=list)
    """What each keeps to from here on, if anything."""

    def __post_init__(self) -> None:
        self.scores = self.scores or [None] * len(self.ids)
        self.prompt_lengths = self.prompt_lengths or [len(ids) for ids in self.ids]
        self.constraints = self.constraints or [None] * len(self.ids)

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
    scores: Sequence[Scores | None] = (),
    constraints: Sequence[Constraint | None] = (),
) -> Generator[tuple[int, int | None], int | None]:
    """Continues every prompt; yields (row, token id) as they come, and (row, None) when a row has ended.

    A row ends with end-of-text (which isn't yielded), after max_new_tokens, or at the model's last position.
    `.send(row)` instead of next() ends that row early: a stop text was found, or its reader has gone.
    All rows share a config, or each has its own. scores: of each row, filled before its tokens are yielded.
    constraints: what each row keeps to; `form` is the caller's to turn into them (inference/verse).
    Raises ValueError for a prompt that is empty, or leaves no position to write to.
    """
    configs = config if isinstance(config, Sequence) else [config] * len(prompts)
    rows = start(decoder, prompts, configs, scores, constraints)
    batch = open_batch(decoder, end_of_text_id, len(prompts))
    batch.join(rows)
    yield from write(batch, batch.advance)


def write(batch: Batch, advance: Callable[[list[int]], None]) -> Generator[tuple[int, int | None], int | None]:
    """The loop of `generate`; yields what it yields.

    advance: batch.advance, or what calls it, then perhaps batch.join for rows that come in.
    """
    try:
        while True:
            rows = batch.rows
            ended: set[int] = set()
            for i, token in enumerate(batch.next_tokens()):
                number = rows.numbers[i]
                rows.ids[i].append(token)
                rows.remaining[i] -= 1
                stopped = None if token == batch.end_of_text_id else (yield number, token)
                if token == batch.end_of_text_id or stopped == number or rows.remaining[i] == 0:
                    ended.add(i)
                    yield number, None
                elif constraint := rows.constraints[i]:
                    rows.constraints[i] = constraint.after(token)
            left = moved_up(len(rows.ids), ended)
            if not left:
                break
            advance(left)
    except GeneratorExit:  # after an error the batch isn't closed: nothing that it held is used again
        batch.close()
        raise
    batch.close()


def moved_up(count: int, ended: set[int]) -> list[int]:
    """Indices of the rows left of `count`: the last rows take the places of those that ended, the others stay.

    So few rows of a cache have to be moved.
    """
    left = count - len(ended)
    last = [i for i in range(left, count) if i not in ended]
    return [last.pop() if i in ended else i for i in range(left)]


def start(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    configs: Sequence[GenerationConfig],
    scores: Sequence[Scores | None] = (),
    constraints: Sequence[Constraint | None] = (),
) -> Rows:
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
    for config in configs:
        check_biases(config, decoder.config.vocab_size or 0)
    generators = [generator_of(ids, config.seed) for ids, config in zip(prompts, configs, strict=True)]
    remaining = [min(config.max_new_tokens, limit - len(ids)) for ids, config in zip(prompts, configs, strict=True)]
    ids = [list(prompt) for prompt in prompts]
    numbers = list(range(len(prompts)))
    return Rows(numbers, ids, generators, remaining, list(configs), list(scores), constraints=list(constraints))


def check_biases(config: GenerationConfig, vocab_size: int) -> None:
    """ValueError for a logit_bias of what is no token."""
    if unknown := [token for token in config.biases if token >= vocab_size]:
        raise ValueError(f"logit_bias names token {unknown[0]}; this model's token ids are from 0 to {vocab_size - 1}")


def generator_of(prompt: Sequence[int], seed: int | None) -> random.Random:
    """A row's random generator, seeded by prompt and seed: by the seed alone, all rows would draw alike.

    It is on the CPU whatever the device, so that the same prompt and seed give the same text.
    """
    if seed is None:
        return random.Random()
    return random.Random(hashlib.blake2b(repr((seed, list(prompt))).encode(), digest_size=8).digest())


class Batch:
    """Rows that are written together, and all that their next tokens are drawn from; rows leave and join.

    decoding.decode_graph.GraphBatch does the same faster on a GPU.
    """

    def __init__(self, decoder: Decoder, end_of_text_id: int, prefixes: PrefixCache | None = None) -> None:
        """prefixes: of earlier prompts and texts; those of this batch are added to it."""
        self.decoder, self.end_of_text_id, self.prefixes = decoder, end_of_text_id, prefixes
        self.device = decoder.word_embeddings.weight.device
        self.rows = Rows([], [], [], [], [])
        self.cache: KVCache | None = None
        self.logits: Tensor
        self.sampler: Sampler | None = None
        if prefixes:
            prefixes.begin(decoder)

    def join(self, rows: Rows) -> None:
        """Reads the prompts of new rows, which come after those that are there."""
        capacity = rows.capacity if self.cache is None else max(map(len, rows.ids))
        joining = KVCache(len(rows.ids), capacity, self.device)
        logits = prefill(self.decoder, rows.ids, joining, rows.scores, self.prefixes)
        before = len(self.rows.ids)
        self.rows.extend(rows)
        if self.cache is None:
            self.cache, self.logits = joining, logits
        else:
            self.cache.merge(joining, self.rows.capacity)
            self.logits = torch.cat([self.logits, logits])
        self.remember(range(before, len(self.rows.ids)), 0)
        self.sampler = None

    def remember(self, rows: Iterable[int], unread: int = 1) -> None:
        """Keeps keys and values of these rows, but those of their last tokens that are `unread`."""
        if self.prefixes:
            for row in rows:
                self.prefixes.keep(self.rows.ids[row], len(self.rows.ids[row]) - unread, self.reader_of(row))

    def reader_of(self, row: int) -> Callable[[int, int], Tensor]:
        """What gives keys and values of positions of a row: KVCache.positions."""
        assert self.cache is not None
        return partial(self.cache.positions, row)

    def next_tokens(self) -> list[int]:
        """A token id a row, which the caller appends. FloatingPointError: probabilities aren't numbers."""
        if self.sampler is None:
            self.sampler = Sampler(self.rows, self.end_of_text_id, self.logits.shape[-1], self.device)
        ids = self.sampler(self.logits, self.rows.generators, self.rows.constraints)
        tokens = checked(ids.tolist())
        if measured := self.sampler.measure(self.logits, ids):
            self.note(self.sampler.scored, measured, tokens)
        return tokens

    def note(self, scored: Sequence[int], measured: Measured, tokens: Sequence[int]) -> None:
        """Hands the log-probabilities of these rows' new tokens to whoever wants them."""
        wanted = [scores for row in scored if (scores := self.rows.scores[row])]
        found = measured.scores([tokens[row] for row in scored], [scores.top for scores in wanted])
        for scores, score in zip(wanted, found, strict=True):
            scores.add(score)

    def advance(self, left: list[int]) -> None:
        """Drops all rows but these, and goes on to the next token."""
        if len(left) < len(self.rows.ids):
            self.remember(set(range(len(self.rows.ids))).difference(left))
            self.rows, self.sampler = self.rows.select(left), None
        assert self.cache is not None
        self.logits = decode_step(self.decoder, self.cache, self.rows, left)
        if self.sampler:
            self.sampler.append(lambda: upload([ids[-1] for ids in self.rows.ids], torch.int64, self.device))

    def close(self) -> None:
        """Nothing more is asked of it."""
        self.remember(range(len(self.rows.ids)))


def open_batch(decoder: Decoder, end_of_text_id: int, places: int, prefixes: PrefixCache | None = None) -> Batch:
    """A batch without rows, for at least `places` of them; prefixes: as of Batch.

    A GPU replays a captured step where the weights are whole and aren't being trained: what is captured keeps memory.
    """
    weight = decoder.word_embeddings.weight
    spread = type(weight) not in (Tensor, nn.Parameter)
    trained = decoder.training or weight.requires_grad
    if not weight.is_cuda or spread or trained or torch.is_autocast_enabled("cuda"):
        return Batch(decoder, end_of_text_id, prefixes)
    from .decoding.decode_graph import GraphBatch

    return GraphBatch(decoder, end_of_text_id, places, prefixes)


def prefill(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    cache: KVCache | None,
    scores: Sequence[Scores | None] = (),
    prefixes: PrefixCache | None = None,
) -> Tensor:
    """Runs all prompts through the decoder, fills the cache, returns next-token logits (B, V).

    scores: what is wanted of the prompts' own tokens, which is found on the way. prefixes: what needn't be read.
    """
    device = decoder.word_embeddings.weight.device
    most = [before_wanted(*each) for each in zip(prompts, scores or [None] * len(prompts), strict=True)]

    def head(hidden: Tensor, weight: Tensor) -> Tensor:
        if any(scores):
            measure_prompts(decoder.head, hidden[0], weight, prompts, scores, skipped)
        return decoder.head(hidden[0, last], weight)

    with attention_kernels(device):
        before = beginnings(decoder, prompts, most, prefixes)
        skipped = [0 if kv is None else kv.shape[3] for kv in before]
        lengths = [len(ids) - count for ids, count in zip(prompts, skipped, strict=True)]
        flat = [token for ids, count in zip(prompts, skipped, strict=True) for token in ids[count:]]
        last = upload([end - 1 for end in accumulate(lengths)], torch.int64, device)
        documents = Layout.of(lengths, device, before) if any(skipped) else lengths
        return decoder(upload(flat, torch.int64, device)[None], documents, cache, head=head)


def decode_step(decoder: Decoder, cache: KVCache, rows: Rows, left: list[int]) -> Tensor:
    """Next-token logits (B, V) of `rows`, from the last id of each; `left`: their indices in the cache."""
    if len(left) < len(cache.lengths):
        cache.select(left)
    last = torch.tensor([[ids[-1]] for ids in rows.ids], device=cache.lengths.device)
    with attention_kernels(last.device):
        return decoder(last, cache=cache)[:, -1]
