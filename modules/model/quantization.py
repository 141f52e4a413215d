"""Linear layers in the form that a CPU computes fastest, for decoders that are never trained: generation, serving …

A decoding step reads every weight once and does little with it, so what counts is how near the reading comes to the
memory's bandwidth, and how many bytes there are to read. float32 and bfloat16 weights are laid out by oneDNN for its
own kernels (what torch.compile's freezing does); int8 takes a quarter of float32's bytes. All between two products is
float32: attention over a bfloat16 cache takes twice as long.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .decoder import Decoder

ROWS = 64
"""Rows that oneDNN lays weights out for; its layout for one row is slower with several, and no faster with one."""

SMALLEST = 1e-30  # divisor of a row of zeros


class PackedLinear(nn.Module):
    """x (…, in) → x·Wᵀ + b (…, out) in W's number format, by a copy of W in oneDNN's layout. Not differentiable.

    The result comes in x's number format.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        inputs = x.to(self.weight.dtype)
        result: Tensor = torch.ops.mkldnn._linear_pointwise.default(inputs, self.weight, self.bias, "none", [], "")
        return result.to(x.dtype)


class Int8Linear(nn.Module):
    """x (…, in) → x·Wᵀ + b (…, out) in integers: W with a scale for each output, x with one for each row.

    Scales of single rows, and not of the batch, keep a row's result what it is without its neighbours; integer sums
    are exact, in whatever order a kernel adds. (The scheme is LLM.int8's "vector-wise", Dettmers et al. 2022, without
    its outliers apart.) Not differentiable.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.product = int8_product(*quantize_weight(weight.detach()))
        self.bias = None if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        largest = rows.abs().amax(1, keepdim=True).clamp_min_(SMALLEST)
        y = self.product(rows / largest)
        y = y.mul_(largest) if self.bias is None else torch.addcmul(self.bias, y, largest)
        return y.view(*x.shape[:-1], -1)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """W (out, in) → whole numbers as int8 (out, in), and what one of them is worth in each output, float32 (out)."""
    levels = weight_levels()
    largest = weight.float().abs().amax(1, keepdim=True).clamp_min(SMALLEST)
    return (weight.float() * (levels / largest)).round_().to(torch.int8), largest.flatten() / levels


def int8_product(weight: Tensor, scale: Tensor) -> Callable[[Tensor], Tensor]:
    """The product with W, given as `quantize_weight` returns it: x (N, in), -1 to 1, in steps of 1/127 → (N, out).

    FBGEMM, torch's library of integer kernels for x86, lays weights out once and rounds x on its way in.
    """
    if torch.backends.quantized.engine not in ("x86", "fbgemm"):
        return partial(plain_int8_product, weight.T, scale / 127)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)  # FBGEMM takes W in no other form
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        packed = torch.ops.quantized.linear_prepack(
            torch._make_per_channel_quantized_tensor(weight, scale, zeros, axis=0), None
        )
    return partial(fbgemm_product, packed)


def fbgemm_product(packed: Any, x: Tensor) -> Tensor:
    """Its x is in unsigned bytes: 128 stands for 0."""
    result: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default(x, 1 / 127, 128, packed)
    return result


def plain_int8_product(weight: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """weight: (in, out)."""
    return torch._int_mm((x * 127).round_().to(torch.int8), weight) * scale


class LinearHead(nn.Module):
    """Replaces decoder.LMHead, with weights of its own: the word embeddings stay as they are, for looking up rows."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden_states: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = self.linear(hidden_states)
        return result


def weight_levels() -> int:
    """127, or 63 where the CPU's products of 8-bit numbers saturate at 16 bits on the way to 32.

    AVX2 and the first AVX-512 add two products of an unsigned and a signed byte in 16 bits (oneDNN, "Nuances of int8
    computations"); 2 · 255 · 63 still fits. The kernel itself is tried, since only it knows which instructions it uses.
    """
    product = int8_product(torch.full((2, 64), 127, dtype=torch.int8), torch.ones(2))
    return 127 if bool(((product(torch.ones(2, 64)) - 64 * 127).abs() < 1).all()) else 63


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels for this number format on this machine."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def prepare_for_inference(decoder: Decoder, int8: bool = False) -> Decoder:
    """Replaces the linear layers and the head of a decoder on the CPU, in place; it can't be trained or saved then.

    Matrices are replaced one by one, so that never more than one is in memory twice; the head gets a matrix of its own.

    int8: weights and products in 8 bits. Without it, they are in the decoder's number format; if oneDNN has no kernels
    for that, the decoder stays as it is. The rest becomes float32.
    """
    decoder.requires_grad_(False)
    if int8:
        make: type[nn.Module] = Int8Linear
    elif packs(decoder.word_embeddings.weight.dtype):
        make = PackedLinear
    else:
        return decoder
    for module in [module for module in decoder.modules() if not isinstance(module, nn.Linear)]:
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, make(child.weight, child.bias))
    decoder.head = LinearHead(make(decoder.word_embeddings.weight, None))  # type: ignore[assignment]
    return decoder.float()
