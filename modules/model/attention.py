"""Causal attention within documents that are laid end to end: nothing is padded, and no document sees another.

Letters as in decoder.py; D documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

VARLEN_FORMATS: dict[str, tuple[torch.dtype, ...]] = {"cuda": (torch.bfloat16, torch.float16)}
"""Kind of device → number formats for which torch has a kernel that takes documents of any lengths in one call."""

MATERIALIZED_LENGTH = 512
"""Up to so many tokens a document, scores kept in bfloat16 are faster than torch's fused kernel for the CPU, which
has no fast backward pass: 2 to 5 times at 64 tokens, 1.8 times at 512, forward and backward."""


@dataclass
class Layout:
    """Where the documents of a forward pass lie. Made on the CPU with the batch, so that nothing waits for a GPU."""

    lengths: list[int]
    """Tokens of each document; sum N."""
    positions: Tensor
    """(N,) int64: each token's position in its document."""
    starts: Tensor
    """(D + 1,) int32: where each document begins, and N."""
    longest: int
    """The longest document's tokens, rounded up to a power of two: a kernel is chosen, or compiled, for few numbers."""
    before: list[Tensor | None] = field(default_factory=list)
    """Of each document, keys and values of what it goes on from, (layers, nh, 2, P, hs); empty where none has any."""

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device | str = "cpu", before: Sequence[Tensor | None] = ()
    ) -> Layout:
        """The layout of documents of these lengths, in their order; before: as the field of that name."""
        counts = torch.tensor(lengths)
        starts = F.pad(counts.cumsum(0), (1, 0))
        positions = torch.arange(int(starts[-1])) - starts[:-1].repeat_interleave(counts)
        longest = 1 << (int(counts.max()) - 1).bit_length()
        layout = cls(counts.tolist(), positions.to(device), starts.int().to(device), longest)
        if any(kv is not None for kv in before):
            layout.before = list(before)
            layout.positions += torch.tensor(layout.read_before).repeat_interleave(counts).to(device)
        return layout

    @property
    def read_before(self) -> list[int]:
        """Tokens that each document goes on from."""
        return [0 if kv is None else kv.shape[3] for kv in self.before] or [0] * len(self.lengths)

    @property
    def ends(self) -> list[int]:
        """Positions that each document has come to after the pass."""
        return [before + length for before, length in zip(self.read_before, self.lengths, strict=True)]

    @property
    def groups(self) -> list[tuple[int, int]]:
        """(documents, tokens each) of neighbouring documents of equal length that go on from the same: each group takes
        one attention call."""
        alike = groupby(zip(self.lengths, map(id, self.before or [None] * len(self.lengths)), strict=True))
        return [(len(list(group)), length) for (length, _), group in alike]


def takes_any_lengths(x: Tensor, head_size: int) -> bool:
    """Whether attention on x's device and in its number format is one call for documents of any lengths.

    It is FlashAttention's: heads of at most 256 numbers in steps of 8, on NVIDIA's GPUs since Ampere.
    """
    if x.dtype not in VARLEN_FORMATS.get(x.device.type, ()) or head_size % 8 or head_size > 256:
        return False
    if torch.compiler.is_compiling() or not x.is_cuda:  # what is compiled was asked before
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (8, 0)


def attention(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
    """Causal attention of each document to itself.

    Args:
        qkv: (N, nh, 3, hs), queries, keys and values.
        layout: Of the N tokens, on the same device.
        dropout: Probability with which an attention weight is dropped.

    Returns:
        (N, C), heads side by side.
    """
    if takes_any_lengths(qkv, qkv.shape[-1]):
        return varlen_attention(qkv, layout, dropout)
    groups = layout.groups
    parts = qkv.split([count * length for count, length in groups])
    outputs = [group_attention(part.unflatten(0, g), dropout) for g, part in zip(groups, parts, strict=True)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def attention_kernels(device: torch.device) -> AbstractContextManager[object]:
    """Keeps CUDA from cuDNN's attention, which makes a plan for each new shape: for each token that would be one."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def continued_attention(qkv: Tensor, layout: Layout, layer: int, keep: Callable[[int, Tensor], None]) -> Tensor:
    """`attention` of documents that go on from what was read before.

    keep: is told the first document of each group, and all keys and values of the group, (documents, nh, 2, S, hs).
    """
    outputs, document = [], 0
    parts = qkv.split([count * length for count, length in layout.groups])
    for (count, length), part in zip(layout.groups, parts, strict=True):
        q, own = part.unflatten(0, (count, length)).permute(0, 2, 3, 1, 4).split([1, 2], 2)  # (documents, nh, _, T, hs)
        before, mask = layout.before[document], None
        if before is not None:
            own = torch.cat([before[layer].to(own.dtype).expand(count, *before.shape[1:]), own], 3)
            mask = torch.ones(length, own.shape[3], dtype=torch.bool, device=own.device).tril_(before.shape[3])
        keep(document, own)
        y = F.scaled_dot_product_attention(
            q[:, :, 0], own[:, :, 0], own[:, :, 1], attn_mask=mask, is_causal=mask is None
        )
        outputs.append(y.transpose(1, 2).flatten(2).flatten(0, 1))
        document += count
    return torch.cat(outputs)


def varlen_attention(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
    """`attention` in one call for documents of any lengths."""
    from torch.nn.attention.varlen import varlen_attn  # which loads sympy: nothing that writes texts on a CPU needs it

    q, k, v = qkv.unbind(2)
    where = (layout.starts, layout.starts, layout.longest, layout.longest)
    if dropout:  # which the public function doesn't offer
        y: Any = torch.ops.aten._flash_attention_forward(q, k, v, *where, dropout, True, False)[0]
    else:
        y = varlen_attn(q, k, v, *where, window_size=(-1, 0))
    return y.flatten(1)  # type: ignore[no-any-return]


def group_attention(qkv: Tensor, dropout: float) -> Tensor:
    """`attention` of documents of equal length: (documents, T, nh, 3, hs) → (documents · T, C)."""
    short = qkv.shape[1] <= MATERIALIZED_LENGTH
    if short and qkv.is_cpu and qkv.dtype == torch.bfloat16 and qkv.requires_grad and not dropout:
        y: Tensor = MaterializedAttention.apply(qkv)  # type: ignore[no-untyped-call]
    else:
        q, k, v = qkv.permute(0, 2, 3, 1, 4).unbind(2)  # (documents, nh, T, hs) each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout).transpose(1, 2)
    return y.flatten(2).flatten(0, 1)


class MaterializedAttention(torch.autograd.Function):
    """Attention by batched matrix products that keeps its weights: (B, T, nh, 3, hs) → (B, T, nh, hs)."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> Tensor:
        rows, time, heads, _, size = qkv.shape
        # Copies, (B·nh, T, hs) each: the products are twice as fast on memory without gaps.
        q, k, v = (part.transpose(1, 2).reshape(rows * heads, time, size) for part in qkv.unbind(3))
        later = torch.full((time, time), -torch.inf, dtype=qkv.dtype).triu_(1)
        weights = torch.baddbmm(later, q, k.mT, alpha=size**-0.5).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        result: Tensor = torch.bmm(weights, v).unflatten(0, (rows, heads)).transpose(1, 2)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        q, k, v, weights = ctx.saved_tensors
        rows, time, heads, size = grad_outputs[0].shape
        gradient = grad_outputs[0].transpose(1, 2).reshape(rows * heads, time, size)
        grad_qkv = q.new_empty(3, *q.shape)
        torch.bmm(weights.mT, gradient, out=grad_qkv[2])
        grad_weights = torch.bmm(gradient, v.mT)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(size**-0.5)
        torch.bmm(grad_scores, k, out=grad_qkv[0])
        torch.bmm(grad_scores.mT, q, out=grad_qkv[1])
        result: Tensor = grad_qkv.unflatten(1, (rows, heads)).permute(1, 3, 2, 0, 4)
        return result
