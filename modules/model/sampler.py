"""The choice of the next token of each row: greedy or sampled, among all or the likeliest; torch only.

B: rows, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .sampling import Rows

UNIT = 2**48
"""Weight of probability 1. Weights are whole numbers, of which sums are exact: a draw depends neither on the order in
which a device adds up nor on the rows beside it, and no rounding gives a token of probability 0 a share."""

CANDIDATES = 512
"""How many of the likeliest tokens are sorted on a CPU for top_p before all are: 0.06 ms where 21,128 take 1.4."""


class Sampler:
    """Chooses the next token of each row on the device where the logits are, with one random number a row.

    Parameters are columns, (B, 1): rows with different ones are drawn together.
    """

    def __init__(self, rows: Rows, end_of_text_id: int, vocab_size: int, device: torch.device) -> None:
        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return upload(values, dtype, device)[:, None]

        self.end_of_text_id, configs = end_of_text_id, rows.configs
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
            longest = max(map(len, rows.ids))  # shorter rows are filled up with a token of theirs: each counts once
            written = [token for ids in rows.ids for token in [*ids, *ids[:1] * (longest - len(ids))]]
            self.written = upload(written, torch.int64, device).unflatten(0, (-1, longest))

    def append(self, last: Callable[[], Tensor]) -> None:
        """What was written since, an id a row (B,); asked for only if it matters."""
        if self.written is not None:
            self.written = torch.cat([self.written, last()[:, None]], 1)

    def __call__(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """logits (B, V), uniforms (B,) float64 in [0, 1) → ids (B,), -1 where probabilities aren't numbers."""
        logits = logits.float()
        if self.written is not None:
            logits = penalize(logits, self.written, self.penalty, self.end_of_text_id)
        if self.mixed or not self.draws:
            best, ids = logits.max(-1)
            greedy = torch.where(best.isnan(), -1, ids)
            if not self.draws:
                return greedy
        scaled = (logits / self.temperature).softmax(-1).mul_(UNIT)
        weights = self.filtered(scaled, self.candidates) if self.candidates else scaled.long()
        drawn = draw(weights, uniforms[:, None])[:, 0]
        return torch.where(self.greedy[:, 0], greedy, drawn) if self.mixed else drawn

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


def checked(tokens: list[int]) -> list[int]:
    """Raises FloatingPointError where a token couldn't be chosen."""
    if min(tokens) < 0:
        raise FloatingPointError(
            "the model's next-token probabilities aren't numbers (NaN): its weights are damaged, "
            "or their number format is too small for it; try another dtype"
        )
    return tokens


def upload(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """These numbers on a device, (n,); a GPU is not waited for."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)
