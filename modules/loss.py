"""Cross-entropy of a linear head, in chunks: the full (tokens × vocabulary) logits never exist.

The gradient is computed beside the loss, chunk by chunk, as the softmax is at hand then (the idea of Apple's
"Cut Your Losses", Wijmans et al. 2024, and LinkedIn's Liger kernel); nothing is recomputed in the backward pass.
Where the vocabulary is cut across devices, each has the logits of its part alone, and what they must agree on is one
maximum, one sum and one logit a token (Megatron-LM's vocabulary-parallel loss, Shoeybi et al. 2019).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from .packing import IGNORED

CHUNK = 512
"""Rows at once: at 512 the matrix products still run at full speed, and logits stay in the cache's reach."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood: hidden (…, C), weight (V, C), labels (…) with IGNORED → scalar."""
    hidden, labels = hidden.flatten(0, -2), labels.flatten()
    trained = labels != IGNORED
    if not bool(trained.all()):
        hidden, labels = hidden[trained], labels[trained]
    group = None
    if isinstance(weight, DTensor):
        mesh = weight.device_mesh
        group = mesh.get_group()
        labels = labels - mesh.get_local_rank() * -(-len(weight) // mesh.size())  # counted from this part's first row
        weight = weight.to_local(grad_placements=[Shard(0)])
    result: Tensor = LinearCrossEntropy.apply(hidden, weight, labels, group)
    return result


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if any(ctx.needs_input_grad) else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # adapters leave it frozen
        for start in range(0, len(labels), CHUNK):
            rows = slice(start, start + CHUNK)
            logits = (hidden[rows] @ weight.T).float()
            normalizer, target_logit, (row, column) = softmax_parts(logits, labels[rows], group)
            total += (normalizer - target_logit).sum()
            if grad_hidden is not None:
                probabilities = logits.sub_(normalizer[:, None]).exp_()
                probabilities[row, column] -= 1.0
                gradient = probabilities.to(hidden.dtype)  # d loss / d logits
                grad_hidden[rows] = gradient @ weight
                if grad_weight is None:
                    continue
                if gradient.dtype == weight.dtype == hidden.dtype and not torch.is_autocast_enabled():
                    grad_weight.addmm_(gradient.T, hidden[rows])
                else:
                    grad_weight += gradient.T @ hidden[rows]
        if group is not None and grad_hidden is not None:
            dist.all_reduce(grad_hidden, group=group)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        return grad_hidden * scale, None if grad_weight is None else grad_weight * scale, None, None


def softmax_parts(
    logits: Tensor, labels: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """logits (N, V) → log of the softmax's denominator (N,), the labels' logits (N,), and where those stand here.

    With a group, logits are this device's part of the vocabulary and labels count from its first row.
    """
    if group is None:
        row = torch.arange(len(labels), device=labels.device)
        return logits.logsumexp(-1), logits[row, labels], (row, labels)
    row = ((labels >= 0) & (labels < logits.shape[1])).nonzero()[:, 0]
    column = labels[row]
    target_logit = logits.new_zeros(len(logits)).index_put_((row,), logits[row, column])
    highest = logits.amax(-1) if logits.shape[1] else logits.new_full((len(logits),), -torch.inf)
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    sums = torch.stack([(logits - highest[:, None]).exp().sum(-1), target_logit])
    dist.all_reduce(sums, group=group)
    return sums[0].log() + highest, sums[1], (row, column)
