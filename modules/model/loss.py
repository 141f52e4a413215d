"""Cross-entropy of a linear head, in chunks: the full (tokens × vocabulary) logits never exist.

The gradient is computed beside the loss, chunk by chunk, as the softmax is at hand then (the idea of Apple's
"Cut Your Losses", Wijmans et al. 2024, and LinkedIn's Liger kernel); nothing is recomputed in the backward pass.
Where the vocabulary is cut across devices, each has the logits of its part alone, and what they must agree on is one
maximum, one sum and one logit a token (Megatron-LM's vocabulary-parallel loss, Shoeybi et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from .linear import product

CHUNK = 512
"""Tokens at once: few enough for their logits to stay in the CPU's cache, and enough for fast matrix products."""

IGNORED = -100
"""The label of a token that isn't trained on (torch's ignore_index)."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood (nats): hidden (…, C), weight (V, C), labels (…) with IGNORED → scalar."""
    hidden, labels = hidden.flatten(0, -2), labels.flatten()
    trained = labels != IGNORED
    if not bool(trained.all()):
        hidden, labels = hidden[trained], labels[trained]
    return trained_cross_entropy(hidden, weight, labels)


def trained_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same without ignored labels: hidden (N, C), weight (V, C) whole or cut along V, labels (N,) → scalar."""
    part, first, group = part_of(weight)
    result: Tensor = LinearCrossEntropy.apply(hidden, part, labels - first, group)  # type: ignore[no-untyped-call]
    return result


@torch.no_grad()
def stopping_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, end_of_text_id: int) -> Tensor:
    """The same loss, and how well the model knows where a text ends, in one pass over the logits.

    hidden (…, C), weight (V, C) whole or cut along V, labels (…) with IGNORED → (4,) float32: summed negative
    log-likelihood of all labels; that of end-of-text labels alone; at how many of these end-of-text is the likeliest
    token; at how many other labels it is.
    """
    hidden, labels = hidden.flatten(0, -2), labels.flatten()
    trained = labels != IGNORED
    part, first, group = part_of(weight)
    end = end_of_text_id - first
    totals = hidden.new_zeros(4, dtype=torch.float32)
    for chunk in chunks(hidden[trained], part, labels[trained] - first, group):
        ends = chunk.target[:, 0] == end
        nll = chunk.nll[:, 0]
        likelihood = chunk.probabilities[:, end].clone() if 0 <= end < len(part) else torch.zeros_like(nll)
        if group is not None:
            dist.all_reduce(likelihood, group=group)
        stops = likelihood >= chunk.likeliest[:, 0]
        totals += torch.stack([chunk.nll.sum(), nll[ends].sum(), (stops & ends).sum(), (stops & ~ends).sum()])
    return totals


def part_of(weight: Tensor) -> tuple[Tensor, int, dist.ProcessGroup | None]:
    """(this device's part of the vocabulary, its first id, who has the rest); (weight, 0, None) where uncut."""
    if not isinstance(weight, DTensor):
        return weight, 0, None
    mesh = weight.device_mesh
    first = mesh.get_local_rank() * -(-len(weight) // mesh.size())
    return weight.to_local(grad_placements=[Shard(0)]), first, mesh.get_group()


class Chunk(NamedTuple):
    rows: slice
    target: Tensor  # (N, 1): labels, counted from the first id of this device's part of the vocabulary
    here: Tensor  # (N, 1): whether the label is in this part
    probabilities: Tensor  # (N, V)
    nll: Tensor  # (N, 1)
    likeliest: Tensor  # (N, 1): the highest probability in any part


def chunks(hidden: Tensor, weight: Tensor, labels: Tensor, group: dist.ProcessGroup | None) -> Iterator[Chunk]:
    """hidden (N, C), weight (V, C): this device's part; labels (N,) counted from its first id → CHUNK tokens each."""
    for start in range(0, len(labels), CHUNK):
        rows = slice(start, start + CHUNK)
        logits = product(hidden[rows], weight).float()
        target = labels[rows, None]
        here = (target >= 0) & (target < len(weight))
        logit = logits.gather(-1, target.clamp(0, len(weight) - 1)) * here
        yield Chunk(rows, target, here, *softmax_in_place(logits, logit, group))


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if any(ctx.needs_input_grad) else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # frozen beside adapters
        for rows, target, here, probabilities, nll, _ in chunks(hidden, weight, labels, group):
            total += nll.sum()
            if grad_hidden is not None:
                probabilities.scatter_add_(-1, target.clamp(0, len(weight) - 1), -here.float())
                gradient = probabilities.to(hidden.dtype)  # d loss / d logits
                grad_hidden[rows] = product(gradient, weight.T)
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


def softmax_in_place(
    logits: Tensor, target_logit: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """logits (N, V) → softmax (N, V) in the same memory, negative log-likelihood (N, 1), highest probability (N, 1).

    With a group, logits are this device's part of the vocabulary; target_logit is 0 where the label isn't in it.
    """
    highest = logits.amax(-1, keepdim=True)
    if group is not None:
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    exponentials = logits.sub_(highest).exp_()
    sums = torch.stack([exponentials.sum(-1, keepdim=True), target_logit])
    if group is not None:
        dist.all_reduce(sums, group=group)
    nll = sums[0].log() + highest - sums[1]
    likeliest = torch.ones_like(highest) / sums[0]  # e^0, divided as the others are: equal to the last bit
    return exponentials.div_(sums[0]), nll, likeliest


LARGEST_EXPONENT = 700.0  # a float ends at e^709


def perplexity_of(loss: float) -> float:
    """exp(loss) of a mean loss in nats, at most e^700."""
    return math.exp(min(loss, LARGEST_EXPONENT))
