"""Log-probabilities of tokens, written ones and those of prompts: the model's own, before anything is done to them.

So at temperature 1, without biases, penalties, top_k, top_p and min_p. V: vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..linear import CHUNK
from .upload import upload

NOT_NUMBERS = (
    "the model's next-token probabilities aren't numbers (NaN): its weights are damaged, "
    "or their number format is too small for it; try another dtype"
)


class TokenScore(NamedTuple):
    token: int
    logprob: float | None
    """None: nothing comes before it."""
    top: list[tuple[int, float]]
    """The likeliest tokens in its place with their log-probabilities, the likeliest first."""


@dataclass(eq=False)
class Scores:
    """What is wanted of a row's log-probabilities, and what has been found."""

    top: int
    """How many of the likeliest tokens are wanted beside each."""
    prompt: range = range(0)
    """Positions of the prompt's tokens that are wanted."""
    found: list[TokenScore] = field(default_factory=list)
    """In the order of the text; end-of-text too where it ended the row."""

    def add(self, score: TokenScore) -> None:
        if score.logprob is not None and math.isnan(score.logprob):
            raise FloatingPointError(NOT_NUMBERS)
        self.found.append(score)


class Measured(NamedTuple):
    """Of n tokens, on the device where their logits are."""

    logprobs: Tensor  # (n,)
    top_ids: Tensor  # (n, k)
    top_logprobs: Tensor  # (n, k)

    def on_cpu(self) -> Measured:
        """A copy, for which a GPU is not waited."""
        return Measured(*(part.to("cpu", non_blocking=True) for part in self))

    def scores(self, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenScore]:
        """tops: how many of the likeliest each wants, of those that are there."""
        measured = zip(self.logprobs.tolist(), self.top_ids.tolist(), self.top_logprobs.tolist(), strict=True)
        return [
            TokenScore(token, logprob, list(zip(ids[:top], values[:top], strict=True)))
            for token, top, (logprob, ids, values) in zip(tokens, tops, measured, strict=True)
        ]


def measure(logits: Tensor, tokens: Tensor, top: int) -> Measured:
    """logits (n, V), tokens (n,) int64; top: the most that one of them wants."""
    logprobs = logits.log_softmax(-1, dtype=torch.float32)
    values, ids = logprobs.topk(min(top, logits.shape[-1]))
    return Measured(logprobs.gather(-1, tokens[:, None])[:, 0], ids, values)


def before_wanted(ids: Sequence[int], wanted: Scores | None) -> int:
    """How many of a prompt's first tokens nothing is asked of; of the last one the next token is asked."""
    return max(0, wanted.prompt.start - 1) if wanted and wanted.prompt else len(ids) - 1


def measure_prompts(
    head: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    weight: Tensor,
    prompts: Sequence[Sequence[int]],
    scores: Sequence[Scores | None],
    read_before: Sequence[int],
) -> None:
    """Finds what is wanted of the prompts' tokens.

    Args:
        head: The output layer.
        hidden: (N, C), of all prompts laid end to end, but for their first tokens that were read before.
        weight: (V, C), the word embeddings.
        read_before: How many these are, of each.
    """
    start = 0
    for ids, wanted, skipped in zip(prompts, scores, read_before, strict=True):
        start -= skipped
        if wanted is not None and wanted.prompt:
            if wanted.prompt[0] == 0:
                wanted.add(TokenScore(ids[0], None, []))
            positions = range(max(1, wanted.prompt.start), wanted.prompt.stop)
            for first in range(positions.start, positions.stop, CHUNK):
                tokens = ids[first : min(first + CHUNK, positions.stop)]
                before = hidden[start + first - 1 : start + first - 1 + len(tokens)]
                measured = measure(head(before, weight), upload(tokens, torch.int64, hidden.device), wanted.top)
                for score in measured.scores(tokens, [wanted.top] * len(tokens)):
                    wanted.add(score)
        start += len(ids)
