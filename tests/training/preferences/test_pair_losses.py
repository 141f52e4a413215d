"""DPO and ORPO by the papers' formulas, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from modules.config.preferences.preference import PreferenceConfig
from modules.data.preferences.pair_packing import PairBatch
from modules.model.attention import Layout
from modules.training.preferences.pair_losses import log1mexp, pair_losses

CHOSEN, REJECTED = [0.5, 0.25], [0.125]
"""Probabilities of the answers' tokens, in the one order or the other."""


def batch(reference: tuple[float, float] = (0.0, 0.0)) -> tuple[torch.Tensor, PairBatch]:
    """(nll, batch) of a pair whose rejected document lies first, and whose chosen one has a prompt that is learnt."""
    probabilities = [*REJECTED, 0.1, *CHOSEN]
    nll = torch.tensor([-math.log(p) for p in probabilities])
    of_pair = PairBatch(
        input_ids=torch.zeros(1, 5, dtype=torch.int64),
        labels=torch.zeros(1, 5, dtype=torch.int64),
        layout=Layout.of([1, 4]),
        trained=torch.arange(4),
        trained_tokens=4,
        characters=0,
        ends=0,
        lost_bytes=0,
        documents=torch.tensor([0]).numpy(),
        document_of=torch.tensor([0, 1, 1, 1]),
        in_answer=torch.tensor([True, False, True, True]),
        sides=torch.tensor([[1], [0]]),
        reference=torch.tensor([[reference[0]], [reference[1]]]),
        chosen_tokens=3,
    )
    return nll, of_pair


def test_dpo() -> None:
    """Equation 7 of Rafailov et al. log π(w) = log 1/8 = log π(l) = -2.0794; with log π₀(w) = -2.5 and log π₀(l) = -1.5
    the ratios are 0.42056 and -0.57944, and their difference is 1. With β = 0.5 the loss is -log σ(0.5).
    """
    found = pair_losses(*batch((-2.5, -1.5)), PreferenceConfig("dpo", beta=0.5))
    assert float(found.preference) == pytest.approx(math.log1p(math.exp(-0.5)), abs=1e-6)
    assert float(found.preference) == pytest.approx(0.474077, abs=1e-6)
    assert float(found.chosen) == pytest.approx(0.5 * 0.4205585, abs=1e-6)
    assert float(found.rejected) == pytest.approx(0.5 * -0.5794415, abs=1e-6)


def test_orpo() -> None:
    """Equations 6 and 7 of Hong et al. P(w) = (1/8)^(1/2) and P(l) = 1/8, the geometric means over tokens; so odds(w) =
    (1 + 2√2)/7 and odds(l) = 1/7, their ratio r = 1 + 2√2, and -log σ(log r) = log(1 + 1/r). The chosen text's own loss
    is that of its three tokens.
    """
    found = pair_losses(*batch(), PreferenceConfig("orpo", beta=0.5))
    assert float(found.preference) == pytest.approx(0.5 * math.log1p(1 / (1 + 2 * math.sqrt(2))), abs=1e-6)
    assert float(found.preference) == pytest.approx(0.5 * 0.232066, abs=1e-6)
    assert float(found.nll) == pytest.approx(math.log(10) + math.log(8), abs=1e-5)
    assert float(found.chosen) == pytest.approx(0.5 * -math.log(8) / 2, abs=1e-6)


def test_what_a_pair_prefers_already_pulls_less() -> None:
    """The derivative of -log σ(β·m) by m is -β·σ(-β·m)."""
    for margin in (-3.0, 0.0, 3.0):
        nll, of_pair = batch((-2.0794415 - margin, -2.0794415))
        nll.requires_grad_()
        pair_losses(nll, of_pair, PreferenceConfig("dpo", beta=0.5)).preference.sum().backward()
        pull = 0.5 / (1 + math.exp(0.5 * margin))
        assert nll.grad is not None
        assert nll.grad.tolist() == pytest.approx([-pull, 0, pull, pull], abs=1e-6)


def test_the_logarithm_of_what_is_left_of_a_probability() -> None:
    x = torch.tensor([-1e-6, -0.5, -0.7, -20.0, -90.0], requires_grad=True)
    expected = [math.log(-math.expm1(v)) if v > -40 else 0.0 for v in x.tolist()]
    found = log1mexp(x)
    assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-8)
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([-1 / math.expm1(-v) for v in x.tolist()], rel=1e-5, abs=1e-8)
    assert math.isfinite(float(log1mexp(torch.tensor(0.0))))  # a token whose probability is rounded to 1
