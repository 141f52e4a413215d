"""Matrix products in float32 on the CPU, by oneDNN where torch would take MKL.

MKL keeps to AVX2 on AMD's processors; oneDNN, which torch carries as well, uses AVX-512 wherever there is any:
twice the speed there (untried on Intel's). torch.compile calls it too (torch/_inductor/fx_passes/mkldnn_fusion.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVX512 = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"

# oneDNN compiles code for each new number of rows and keeps 1,024 of them, 0.7 MB each; few are used again.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


class Linear(nn.Linear):
    """nn.Linear whose matrix products, forward and backward, run on the faster library."""

    __call__: Callable[..., Tensor]  # torch says Any

    def forward(self, x: Tensor) -> Tensor:
        if through_onednn(x, self.weight):
            result: Tensor = OneDNNLinear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return result
        return super().forward(x)


class OneDNNLinear(torch.autograd.Function):
    """x (N, in), weight (out, in), bias (out) → (N, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        needed = ctx.needs_input_grad
        ctx.save_for_backward(x if needed[1] else None, weight if needed[0] else None)
        return onednn_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (gradient,) = grad_outputs
        grad_x = onednn_product(gradient, weight.T) if ctx.needs_input_grad[0] else None
        grad_weight = onednn_product(gradient.T, x.T) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None


def product(a: Tensor, b: Tensor) -> Tensor:
    """a (N, K), b (M, K) → a·bᵀ (N, M), by the faster library; without gradients."""
    return onednn_product(a, b) if through_onednn(a, b) else F.linear(a, b)


def through_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether both are plain float32 tensors on the CPU (no DTensor, no fake tensor), where oneDNN is faster."""
    return (
        AVX512
        and all(type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float32 and t.is_cpu for t in (a, b))
        and a.dim() == 2
        and not torch.is_autocast_enabled("cpu")
    )


def onednn_product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return result
