"""The losses of pairs, from the log-probabilities of their answers: torch alone, worked by hand in the tests.

With π the model, π₀ the one that training starts from, σ the logistic function, w the chosen and l the rejected answer:

    DPO (Rafailov et al. 2023, equation 7):  -log σ(β·(log π(w)/π₀(w) - log π(l)/π₀(l)))
    ORPO (Hong et al. 2024, equations 6 and 7):  -log P(x, w) - β·log σ(log odds(w) - log odds(l))

There log π is the sum over an answer's tokens, and the odds are P/(1-P) with log P their mean. ORPO's first term is the
mean over all tokens of the chosen texts, prompts included, as its authors' and TRL's code have it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.preferences.preference import PreferenceConfig
from ...data.preferences.pair_packing import PairBatch


class PairLosses(NamedTuple):
    """Of each pair, (pairs,) float32; nll is a sum over all."""

    preference: Tensor
    """What there is of the loss beside the nll."""
    chosen: Tensor
    """Rewards, that is β times the log-probability, in DPO less that of the model which training starts from."""
    rejected: Tensor
    nll: Tensor
    """Summed negative log-likelihood of the chosen documents' labels."""


def pair_losses(nll: Tensor, batch: PairBatch, config: PreferenceConfig) -> PairLosses:
    """nll: (trained_tokens,), of the batch's labels that are trained on, as `token_nll` gives it."""
    summed = answer_log_probabilities(nll, batch)[batch.sides]  # (2, pairs)
    if config.loss == "dpo":
        rewards = config.beta * (summed - batch.reference)
        preference = -F.logsigmoid(rewards[0] - rewards[1])
    else:
        mean = summed / of_documents(batch.in_answer.to(nll.dtype), batch)[batch.sides]
        log_odds = mean - log1mexp(mean)
        rewards = config.beta * mean
        preference = -config.beta * F.logsigmoid(log_odds[0] - log_odds[1])
    return PairLosses(
        preference, rewards[0].detach(), rewards[1].detach(), of_documents(nll, batch)[batch.sides[0]].sum()
    )


def answer_log_probabilities(nll: Tensor, batch: PairBatch) -> Tensor:
    """Of each of the batch's documents its answer's, summed over tokens, (documents,)."""
    return -of_documents(nll * batch.in_answer, batch)


def of_documents(values: Tensor, batch: PairBatch) -> Tensor:
    """Sums of the values of the labels that are trained on (trained_tokens,), by document (documents,)."""
    return values.new_zeros(batch.sides.numel()).index_add(0, batch.document_of, values)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) of x < 0, by whichever of two formulas is exact there (Mächler 2012)."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -0.6931472
    small, large = x.where(near, -1.0), x.where(~near, -1.0)  # or the other's gradient would be NaN
    return (-torch.expm1(small)).log().where(near, torch.log1p(-torch.exp(large)))
