"""Matrix products on the CPU by oneDNN where it is faster than what torch would take; weights cast where they are used.

float32: MKL keeps to AVX2 on AMD's processors; oneDNN, which torch carries as well, uses AVX-512 wherever there is any:
twice the speed there (untried on Intel's). torch.compile calls it too (torch/_inductor/fx_passes/mkldnn_fusion.py).
bfloat16: torch takes oneDNN by itself, but transposes the weights in every call.

With activations in bfloat16 and weights in float32 a layer computes in bfloat16 and its weights get float32 gradients:
mixed precision without autocast, which would keep activations between layers in float32, and cast them to and fro.
The same goes for LayerNorm.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVX512 = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"

ONEDNN_FORMATS = (
    (torch.float32, torch.bfloat16) if AVX512 and torch.cpu._is_avx512_bf16_supported() else (torch.float32,)
)

CHUNK = 512
"""Tokens whose logits are made at once on a CPU: few enough for them to stay near its caches, enough for fast products.
"""

# oneDNN compiles code for each new number of rows and keeps 1,024 of them, 0.7 MB each; few are used again.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


class Linear(nn.Linear):
    """nn.Linear in the number format of x, whatever its weights' own, by the faster library."""

    __call__: Callable[..., Tensor]  # torch says Any

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if weight.dtype != x.dtype:
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        if through_onednn(x, weight):
            result: Tensor = OneDNNLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
            return result
        return F.linear(x, weight, bias)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm in the number format of x; means and deviations are float32 in any."""

    __call__: Callable[..., Tensor]  # torch says Any

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype or x.is_cpu:  # the CPU's kernel takes float32 weights beside bfloat16
            return super().forward(x)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class OneDNNLinear(torch.autograd.Function):
    """x (N, in), weight (out, in), bias (out), all in one number format → (N, out)."""

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
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = onednn_product(gradient.T, x.T) if x.dtype == torch.float32 else gradient.T @ x
        return grad_x, grad_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None


def product(a: Tensor, b: Tensor) -> Tensor:
    """a (N, K), b (M, K) → a·bᵀ (N, M), by the faster library; without gradients."""
    return onednn_product(a, b) if through_onednn(a, b) else F.linear(a, b)


def through_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether both are plain matrices on the CPU (no DTensor, no fake tensor) in a format for which it is faster."""
    return (
        AVX512
        and not torch.compiler.is_compiling()  # Inductor chooses by itself, and can't take this operator
        and all(type(t) in (Tensor, nn.Parameter) and t.dtype in ONEDNN_FORMATS and t.is_cpu for t in (a, b))
        and a.dim() == 2
        and a.dtype == b.dtype
        and not torch.is_autocast_enabled("cpu")
    )


def onednn_product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return result
