"""The rows of a batch: what is written of each, with which parameters and random numbers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..decoder import Decoder
from .constraints import Constraint
from .token_scores import Scores

if TYPE_CHECKING:
    from ...config.generation import GenerationConfig


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
