"""Cross-entropy of a linear head, in chunks: the full (tokens × vocabulary) logits never exist.

The gradient is computed beside the loss, chunk by chunk, as the softmax is at hand then (the idea of Apple's
"Cut Your Losses", Wijmans et al. 2024, and LinkedIn's Liger kernel); nothing is recomputed in the backward pass.
Where the vocabulary is cut across devices, each has the logits of its part alone, and what they must agree on is one
maximum, one sum and one logit a token (Megatron-LM's vocabulary-parallel loss, Shoeybi et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, overload

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from .linear import product

CHUNK = 512
"""Rows at once: at 512 the matrix products still run at full speed, and logits stay in the cache's reach."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood: hidden (…, C), weight (V, C), labels (…) with IGNORED → scalar."""
    hidden, labels = hidden.flatten(0, -2), labels.flatten()
    trained = labels != IGNORED
    if not bool(trained.all()):
        hidden, labels = hidden[trained], labels[trained]
    return trained_cross_entropy(hidden, weight, labels)


def trained_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same where every label counts: hidden (N, C), weight (V, C), cut along V or not, labels (N,) → scalar."""
    part, first, group = part_of(weight)
    result: Tensor = LinearCrossEntropy.apply(hidden, part, labels - first, group)
    return result


@torch.no_grad()
def stopping_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, end_of_text_id: int) -> Tensor:
    """The same loss, and how well the model knows where a text ends; in one pass over the logits.

    hidden (…, C), weight (V, C), labels (…) with IGNORED → (4,): the summed negative log-likelihood; that of
    end-of-texts alone; how many of these are the likeliest token; and of how many other labels end-of-text is.
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
    """This device's part of the vocabulary, its first id, and who has the others: all of it, 0 and None where uncut."""
    if not isinstance(weight, DTensor):
        return weight, 0, None
    mesh = weight.device_mesh
    first = mesh.get_local_rank() * -(-len(weight) // mesh.size())
    return weight.to_local(grad_placements=[Shard(0)]), first, mesh.get_group()


class Chunk(NamedTuple):
    rows: slice
    target: Tensor
    """(N, 1) label, counted from this part's first id."""
    here: Tensor
    """(N, 1) whether that is in this part."""
    probabilities: Tensor
    """(N, V)"""
    nll: Tensor
    """(N, 1)"""
    likeliest: Tensor
    """(N, 1) the highest probability, in any part."""


def chunks(hidden: Tensor, weight: Tensor, labels: Tensor, group: dist.ProcessGroup | None) -> Iterator[Chunk]:
    """hidden (N, C), weight (V, C): this device's part of the vocabulary; labels (N,) counted from its first id."""
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
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # adapters leave it frozen
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
    """logits (N, V) → their softmax, in the same memory; the labels' negative log-likelihood; the highest probability.

    The last two are (N, 1). With a group, logits are this device's part of the vocabulary; target_logit is 0 where the
    label isn't in it.
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


@overload
def perplexity_of(loss: float) -> float: ...
@overload
def perplexity_of(loss: np.ndarray) -> np.ndarray: ...
def perplexity_of(loss: float | np.ndarray) -> float | np.ndarray:
    """exp(loss) of a mean loss in nats, or of many; at most e^700, since a float ends at e^709."""
    if isinstance(loss, np.ndarray):
        found: np.ndarray = np.exp(np.minimum(loss, 700.0))
        return found
    return math.exp(min(loss, 700.0))


IGNORED = -100
"""The label of a token that isn't trained on (torch's ignore_index)."""
