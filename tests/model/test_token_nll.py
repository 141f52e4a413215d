"""Each token's negative log-likelihood, and its gradient, are those of the plain logits, in whichever chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modules.model.linear import CHUNK
from modules.model.loss import IGNORED, token_nll


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [40, 2 * CHUNK + 17], ids=["a chunk", "chunks"])
def test_each_token_counts_by_itself(tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, 32, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(50, 32, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, 50, (1, tokens), generator=generator)
    labels[:, ::3] = IGNORED
    trained = (labels.flatten() != IGNORED).nonzero()[:, 0]
    factors = torch.randn(len(trained), generator=generator)
    found = token_nll(hidden, weight, labels, trained)
    plain = F.cross_entropy((hidden @ weight.T).float()[0], labels[0], ignore_index=IGNORED, reduction="none")[trained]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, plain, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad((found * factors).sum(), (hidden, weight))
    expected = torch.autograd.grad((plain * factors).sum(), (hidden, weight))
    for one, other in zip(gradients, expected, strict=True):
        assert float((one - other).norm() / other.norm()) < tolerance
    (beside_frozen,) = torch.autograd.grad(
        (token_nll(hidden, weight.detach(), labels, trained) * factors).sum(), hidden
    )
    assert torch.equal(beside_frozen, gradients[0])


def test_no_token_is_no_loss_and_no_gradient() -> None:
    hidden, weight = torch.randn(1, 3, 8).requires_grad_(), torch.randn(5, 8).requires_grad_()
    found = token_nll(hidden, weight, torch.full((1, 3), IGNORED), torch.empty(0, dtype=torch.int64))
    assert found.shape == (0,)
    assert [float(g.abs().sum()) for g in torch.autograd.grad(found.sum(), (hidden, weight))] == [0.0, 0.0]
