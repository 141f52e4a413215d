"""Matrix products by oneDNN equal torch's own, gradients too; whatever it can't take goes the plain way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modules.model import linear as products
from modules.model.linear import LayerNorm, Linear, product


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Takes oneDNN on any processor; lists the shapes that it was given."""
    monkeypatch.setattr(products, "AVX512", True)
    monkeypatch.setattr(products, "ONEDNN_FORMATS", (torch.float32,))
    taken: list[tuple[int, ...]] = []
    plain = products.onednn_product

    def noted(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        taken.append((*a.shape, len(b)))
        return plain(a, b, bias)

    monkeypatch.setattr(products, "onednn_product", noted)
    return taken


@pytest.mark.parametrize("rows", [1, 7, 130])
def test_a_linear_layer_and_its_gradients_equal_torchs(rows: int, onednn: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    ours, plain = Linear(48, 96), nn.Linear(48, 96)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(rows, 48, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weighting = torch.randn(rows, 96)
    result = ours(x)
    (result * weighting).sum().backward()
    (plain(y) * weighting).sum().backward()
    torch.testing.assert_close(result, plain(y), rtol=1e-5, atol=1e-5)
    for mine, other in ((x, y), (ours.weight, plain.weight), (ours.bias, plain.bias)):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)
    assert onednn == [(rows, 48, 96), (rows, 96, 48), (96, rows, 48)]


def test_no_gradient_is_computed_for_a_frozen_weight(onednn: list[tuple[int, ...]]) -> None:
    layer = Linear(16, 32)
    layer.requires_grad_(False)
    layer(torch.randn(4, 16, requires_grad=True)).sum().backward()
    assert onednn == [(4, 16, 32), (4, 32, 16)]


def test_a_frozen_layer_keeps_nothing_of_its_input(onednn: list[tuple[int, ...]]) -> None:
    kept: list[int] = []
    layer = Linear(16, 32)
    layer.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        layer(torch.randn(4, 16, requires_grad=True))
    assert kept == [16 * 32]


def test_other_number_formats_take_torchs_way(onednn: list[tuple[int, ...]]) -> None:
    layer, x = Linear(16, 32), torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    layer(torch.randn(2, 3, 16, requires_grad=True)).sum().backward()  # batches of matrices too
    layer.double()(x.double())
    layer.to("meta")(x.to("meta"))
    assert product(x.bfloat16(), x.bfloat16()).dtype == torch.bfloat16
    assert not onednn


@pytest.mark.parametrize("formats", [(torch.float32,), (torch.float32, torch.bfloat16)], ids=["torch's", "onednn's"])
def test_activations_in_bfloat16_give_float32_weights_their_gradients(
    formats: tuple[torch.dtype, ...], onednn: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "ONEDNN_FORMATS", formats)
    torch.manual_seed(0)
    layer, norm = Linear(48, 96), LayerNorm(48)
    x = torch.randn(130, 48)
    weighting = torch.randn(130, 96)
    found = []
    for number_format in (torch.float32, torch.bfloat16):
        layer.zero_grad()
        norm.zero_grad()
        result = layer(norm(x.to(number_format)))
        assert result.dtype == number_format
        (result * weighting.to(number_format)).sum().backward()
        assert {p.grad.dtype for p in (*layer.parameters(), *norm.parameters()) if p.grad is not None} == {
            torch.float32
        }
        found.append([result.detach().float(), *(p.grad for p in (*layer.parameters(), *norm.parameters()))])
    for exact, rounded in zip(*found, strict=True):
        assert exact is not None
        assert rounded is not None
        assert float((rounded - exact).norm() / exact.norm()) < 0.03
    assert bool(len(onednn) > 3) == (torch.bfloat16 in formats)
