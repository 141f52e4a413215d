"""The choice of the next token of each row: greedy or sampled, among all or the likeliest; torch only.

B: rows, V: vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .constraints import Constraint, mask
from .penalties import Penalties
from .token_scores import NOT_NUMBERS, Measured, measure
from .upload import upload

if TYPE_CHECKING:
    from .batch_rows import Rows

SPREAD = 0x9E3779B9 - 2**32
"""2³² ÷ the golden ratio, as int32: multiples of it lie far apart."""

HASH = (16, 0x7FEB352D), (15, 0x846CA68B - 2**32)
"""Shift and factor of each round of the hash."""

CANDIDATES = 512
"""How many of the likeliest tokens are sorted on a CPU for top_p before all are: 0.06 ms where 21,128 take 1.4."""


class Sampler:
    """Chooses the next token of each row on the device where the logits are, with random numbers of the row alone.

    Parameters are columns, (B, 1): rows with different ones are drawn together.
    """

    def __init__(self, rows: Rows, end_of_text_id: int, vocab_size: int, device: torch.device) -> None:
        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return upload(values, dtype, device)[:, None]

        configs = rows.configs
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
        self.min_p: Tensor | None = None
        if any(config.min_p for config in configs):
            self.min_p = column([config.min_p for config in configs], torch.float32)
        self.penalties = Penalties(rows, end_of_text_id, vocab_size, device)
        self.append = self.penalties.append
        self.scored = [row for row, scores in enumerate(rows.scores) if scores]
        """The rows whose tokens' log-probabilities are wanted."""
        self.tops = [scores.top for scores in rows.scores if scores]

    def __call__(
        self,
        logits: Tensor,
        generators: Sequence[random.Random | None],
        constraints: Sequence[Constraint | None] = (),
    ) -> Tensor:
        """logits (B, V), the rows' generators → ids (B,), -1 where probabilities aren't numbers."""
        scores = logits = mask(self.penalties(logits.float()), constraints)
        if self.draws:
            probabilities = (logits / self.temperature).softmax(-1)
            if self.candidates:
                self.filter(probabilities, self.candidates)
            if self.min_p is not None:
                probabilities.masked_fill_(probabilities < self.min_p * probabilities.amax(-1, keepdim=True), 0)
            scores = exponential_race(probabilities, seeds_of(generators, logits.device))
        if self.mixed:
            scores = torch.where(self.greedy, logits, scores)
        best, ids = scores.max(-1)
        return torch.where(best.isnan(), -1, ids)

    def measure(self, logits: Tensor, ids: Tensor) -> Measured | None:
        """What is wanted of the tokens ids (B,) chosen by these logits, of the rows `scored` alone."""
        if not self.scored:
            return None
        rows = upload(self.scored, torch.int64, logits.device)
        return measure(logits[rows], ids[rows].clamp(min=0), max(self.tops))

    def filter(self, probabilities: Tensor, candidates: int) -> None:
        """Sets all but the k likeliest tokens, and of these all beyond the nucleus of mass p, to 0, in place.

        Tokens that are just as likely as the last one kept stay too: no order among equals decides.
        candidates: how many of the likeliest to look at first; if a nucleus is larger, all are.
        """
        likeliest = probabilities.topk(candidates).values
        kth = torch.where(self.top_k > 0, likeliest.gather(-1, (self.top_k - 1).clamp(min=0)), 0)
        probabilities.masked_fill_(probabilities < kth, 0)
        if not self.nucleus:
            return
        mass = likeliest.masked_fill_(likeliest < kth, 0).cumsum(-1, dtype=torch.float64)
        goal = probabilities.sum(-1, keepdim=True) * self.top_p
        if candidates < probabilities.shape[-1] and bool((mass[:, -1:] < goal).any()):
            self.filter(probabilities, probabilities.shape[-1])
            return
        beyond = mass - likeliest >= goal  # the token that reaches p stays
        lowest = likeliest.masked_fill_(beyond, 1).amin(-1, keepdim=True)
        probabilities.masked_fill_(probabilities < torch.where(self.top_p > 0, lowest, 0), 0)


def exponential_race(probabilities: Tensor, seeds: Tensor) -> Tensor:
    """Scores (B, V) of which the highest is a draw: tokens wait an exponential time, their probability is the rate.

    torch.multinomial draws so too; the logarithm of it is the Gumbel-max trick. A cumulative sum would take one random
    number and less time, but the last bits of the logits, which in bf16 change with the number of rows, would choose
    between neighbours in the vocabulary: of 18 rows in a batch 7 became what they become alone, and with this 17.
    """
    return noise(seeds, probabilities.shape[-1]).div_(probabilities)  # -time; -inf where the probability is 0


def noise(seeds: Tensor, size: int) -> Tensor:
    """Minus an exponential random number for each token, (B, size): a hash of its id and its row's seeds (B, 2).

    So it is the same on any device and beside any rows. The hash is lowbias32 (Wellons 2018), seeded at each round.
    """
    x = torch.arange(size, dtype=torch.int32, device=seeds.device).mul_(SPREAD).repeat(len(seeds), 1)
    shifted = torch.empty_like(x)
    for seed, (shift, factor) in zip(seeds.split(1, -1), HASH, strict=True):
        x ^= seed
        x ^= torch.bitwise_right_shift(x, shift, out=shifted)
        x *= factor
    x ^= torch.bitwise_right_shift(x, 16, out=shifted)
    return minus_exponential(x)


def minus_exponential(x: Tensor) -> Tensor:
    """int32 → log(1 - u), where u is from 2⁻³² to 1 - 2⁻²⁴, float32's last number before 1: finite and below 0."""
    u = x.bitwise_and_(2**31 - 1).float().mul_(2**-31 * (1 - 2**-24)).add_(2**-32)
    return u.neg_().log1p_()


def checked(tokens: list[int]) -> list[int]:
    """Raises FloatingPointError where a token couldn't be chosen."""
    if min(tokens) < 0:
        raise FloatingPointError(NOT_NUMBERS)
    return tokens


def seeds_of(generators: Sequence[random.Random | None], device: torch.device) -> Tensor:
    """The next random numbers of each row, (B, 2) int32: all the randomness that a token takes; None: 0."""
    numbers = [generator.getrandbits(64) if generator else 0 for generator in generators]
    return upload(numbers, torch.uint64, device).view(torch.int32).view(-1, 2)
