"""Cross-entropy of a linear head, in chunks: the full (tokens × vocabulary) logits never exist.

The gradient is computed beside the loss, chunk by chunk, as the softmax is at hand then (the idea of Apple's
"Cut Your Losses", Wijmans et al. 2024, and LinkedIn's Liger kernel); nothing is recomputed in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .packing import IGNORED

CHUNK = 512
"""Rows at once: at 512 the matrix products still run at full speed, and logits stay in the cache's reach."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood: hidden (…, C), weight (V, C), labels (…) with IGNORED → scalar."""
    hidden, labels = hidden.flatten(0, -2), labels.flatten()
    trained = labels != IGNORED
    if not bool(trained.all()):
        hidden, labels = hidden[trained], labels[trained]
    result: Tensor = LinearCrossEntropy.apply(hidden, weight, labels)
    return result


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if any(ctx.needs_input_grad) else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # adapters leave it frozen
        for start in range(0, len(labels), CHUNK):
            rows = slice(start, start + CHUNK)
            logits = (hidden[rows] @ weight.T).float()
            normalizer = logits.logsumexp(-1, keepdim=True)
            target = labels[rows, None]
            total += (normalizer - logits.gather(-1, target)).sum()
            if grad_hidden is not None:
                probabilities = logits.sub_(normalizer).exp_()
                probabilities.scatter_add_(-1, target, probabilities.new_full(target.shape, -1.0))
                gradient = probabilities.to(hidden.dtype)  # d loss / d logits
                grad_hidden[rows] = gradient @ weight
                if grad_weight is None:
                    continue
                if gradient.dtype == weight.dtype == hidden.dtype and not torch.is_autocast_enabled():
                    grad_weight.addmm_(gradient.T, hidden[rows])
                else:
                    grad_weight += gradient.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_outputs[0], None if grad_weight is None else grad_weight * grad_outputs[0], None
