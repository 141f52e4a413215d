"""Cross-entropy of a linear head, in chunks: the full (tokens × vocabulary) logits never exist.

The gradient is computed beside the loss, chunk by chunk, as the softmax is at hand then (the idea of Apple's
"Cut Your Losses", Wijmans et al. 2024, and LinkedIn's Liger kernel); nothing is recomputed in the backward pass.
Where the vocabulary is cut across devices, each has the logits of its part alone, and what they must agree on is one
maximum, one sum and one logit a token (Megatron-LM's vocabulary-parallel loss, Shoeybi et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from .linear import CHUNK, product

SOFTMAX_ROWS = 64
"""Tokens at once whose softmax is taken on a CPU: in float32 they fit its caches, whatever the products' format."""

GPU_LOGITS = 2**26
"""Logits at once on a GPU: 128 MiB in bfloat16."""

IGNORED = -100
"""The label of a token that isn't trained on (torch's ignore_index)."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, trained: Tensor | None = None, compiled: bool = False
) -> Tensor:
    """Summed negative log-likelihood in nats.

    Args:
        hidden: (…, C).
        weight: (V, C), whole or cut along V.
        labels: (…) int64 with IGNORED.
        trained: (n,) int64, which of the flat labels aren't IGNORED; a GPU is waited for where that isn't given.
        compiled: Take the softmax and its gradient by torch.compile, which reads and writes logits once on a GPU.

    Returns:
        A scalar, float32.
    """
    hidden, labels = trained_on(hidden, labels, trained)
    part, first, group = part_of(weight)
    result: Tensor = LinearCrossEntropy.apply(hidden, part, labels - first, group, compiled)  # type: ignore[no-untyped-call]
    return result


def trained_on(hidden: Tensor, labels: Tensor, trained: Tensor | None) -> tuple[Tensor, Tensor]:
    """The hidden states (n, C) whose labels (n,) aren't IGNORED."""
    hidden, labels = hidden.flatten(0, -2), labels.flatten()
    if trained is None:
        trained = (labels != IGNORED).nonzero()[:, 0]
    if len(trained) == len(labels):
        return hidden, labels
    return hidden.index_select(0, trained), labels.index_select(0, trained)


@torch.no_grad()
def stopping_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, end_of_text_id: int, trained: Tensor | None = None
) -> Tensor:
    """The same loss, and how well the model knows where a text ends, in one pass over the logits.

    Arguments as of `linear_cross_entropy`. Returns (4,) float32: summed negative log-likelihood of all labels; that of
    end-of-text labels alone; at how many of these end-of-text is the likeliest token; at how many other labels it is.
    """
    hidden, labels = trained_on(hidden, labels, trained)
    part, first, group = part_of(weight)
    part, end = part.to(hidden.dtype), end_of_text_id - first
    totals = hidden.new_zeros(4, dtype=torch.float32)
    for rows in chunks(len(labels), part):
        for logits, target in blocks(product(hidden[rows], part), labels[rows] - first, group):
            found = softmax(logits, target, group)
            ends, nll = target == end, found.nll
            likelihood = found.probabilities[:, end].clone() if 0 <= end < len(part) else torch.zeros_like(nll)
            if group is not None:
                dist.all_reduce(likelihood, group=group)
            stops = likelihood >= found.likeliest
            totals += torch.stack([nll.sum(), nll[ends].sum(), (stops & ends).sum(), (stops & ~ends).sum()])
    return totals


def part_of(weight: Tensor) -> tuple[Tensor, int, dist.ProcessGroup | None]:
    """(this device's part of the vocabulary, its first id, who has the rest); (weight, 0, None) where uncut."""
    if not isinstance(weight, DTensor):
        return weight, 0, None
    mesh = weight.device_mesh
    first = mesh.get_local_rank() * -(-len(weight) // mesh.size())
    return weight.to_local(grad_placements=[Shard(0)]), first, mesh.get_group()


def chunks(tokens: int, weight: Tensor) -> Iterator[slice]:
    """Of so many tokens, those whose logits are there at once."""
    size = CHUNK if weight.device.type == "cpu" else max(1, GPU_LOGITS // len(weight))
    return (slice(start, start + size) for start in range(0, tokens, size))


def blocks(logits: Tensor, target: Tensor, group: dist.ProcessGroup | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of a chunk's logits and targets, views of them, that `softmax` takes at once."""
    size = SOFTMAX_ROWS if logits.device.type == "cpu" and group is None else len(target)
    return zip(logits.split(size), target.split(size), strict=True)


class LinearCrossEntropy(torch.autograd.Function):
    """hidden (N, C), weight (V, C), labels (N,) counted from this device's first id → summed loss, float32."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, group: dist.ProcessGroup | None, compiled: bool
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if any(ctx.needs_input_grad) else None
        # In float32 where chunks add up, whatever the weights' format; none where they are frozen beside adapters.
        several = len(list(chunks(len(labels), weight))) > 1
        summed = torch.float32 if several else weight.dtype
        grad_weight = torch.zeros_like(weight, dtype=summed) if ctx.needs_input_grad[1] else None
        cast = weight.to(hidden.dtype)
        for rows in chunks(len(labels), weight):
            logits, target = product(hidden[rows], cast), labels[rows]
            if compiled and group is None:
                loss, gradient = compiled_gradient()(logits, target)
            else:
                loss, gradient = gradient_in_place(logits, target, group)
            total += loss
            if grad_hidden is not None:
                grad_hidden[rows] = product(gradient, cast.T)
            if grad_weight is not None:
                add_product(grad_weight, gradient.T, hidden[rows])
        if group is not None and grad_hidden is not None:
            dist.all_reduce(grad_hidden, group=group)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        return grad_hidden * scale, None if grad_weight is None else grad_weight * scale, None, None, None


def token_nll(hidden: Tensor, weight: Tensor, labels: Tensor, trained: Tensor) -> Tensor:
    """Negative log-likelihood of each label that is trained on, (n,) float32; arguments as of `linear_cross_entropy`.

    For losses in which texts don't weigh alike: what each token's gradient is multiplied by is known afterwards only,
    so the logits are computed once more in the backward pass.
    """
    hidden, labels = trained_on(hidden, labels, trained)
    part, first, group = part_of(weight)
    result: Tensor = TokenNLL.apply(hidden, part, labels - first, group)  # type: ignore[no-untyped-call]
    return result


class TokenNLL(torch.autograd.Function):
    """hidden (N, C), weight (V, C), labels (N,) counted from this device's first id → (N,) float32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        cast, found = weight.to(hidden.dtype), [hidden.new_zeros(0, dtype=torch.float32)]
        for rows in chunks(len(labels), weight):
            for logits, target in blocks(product(hidden[rows], cast), labels[rows], group):
                found.append(softmax(logits, target, group).nll)
        ctx.save_for_backward(hidden, weight, labels)
        ctx.group = group
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (hidden, weight, labels), group = ctx.saved_tensors, ctx.group
        cast, grad_hidden = weight.to(hidden.dtype), torch.empty_like(hidden)
        several = len(list(chunks(len(labels), weight))) > 1
        summed = torch.float32 if several else weight.dtype  # as LinearCrossEntropy adds up
        grad_weight = torch.zeros_like(weight, dtype=summed) if ctx.needs_input_grad[1] else None
        for rows in chunks(len(labels), weight):
            _, gradient = gradient_in_place(product(hidden[rows], cast), labels[rows], group)
            gradient *= grad_outputs[0][rows, None]
            grad_hidden[rows] = product(gradient, cast.T)
            if grad_weight is not None:
                add_product(grad_weight, gradient.T, hidden[rows])
        if group is not None:
            dist.all_reduce(grad_hidden, group=group)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a·b, added up in the number format of `total`."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


def gradient_of(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(summed loss, its gradient (N, V)) of logits (N, V) of a whole vocabulary; a compiler makes one kernel of it."""
    wide = logits.float()
    log_sum = wide.logsumexp(-1, keepdim=True)
    one_hot = torch.arange(logits.shape[1], device=logits.device) == target[:, None]
    loss = (log_sum - wide.gather(-1, target[:, None])).sum()
    return loss, ((wide - log_sum).exp() - one_hot.float()).to(logits.dtype)


@cache
def compiled_gradient() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(gradient_of, fullgraph=True, dynamic=True)


def gradient_in_place(logits: Tensor, target: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """(summed loss, the logits (N, V) turned into its gradient, softmax - one-hot). target (N,) as in `softmax`."""
    total = logits.new_zeros((), dtype=torch.float32)
    for block, labels in blocks(logits, target, group):
        found = softmax(block, labels, group)
        here = (labels >= 0) & (labels < logits.shape[1])
        index = labels.clamp(0, logits.shape[1] - 1)[:, None]
        block.copy_(found.probabilities.scatter_add_(-1, index, -here.float()[:, None]))
        total += found.nll.sum()
    return total, logits


class Softmax(NamedTuple):
    probabilities: Tensor  # (N, V) float32
    nll: Tensor  # (N,) float32
    likeliest: Tensor  # (N,) float32: the highest probability in any part of the vocabulary


def softmax(logits: Tensor, target: Tensor, group: dist.ProcessGroup | None) -> Softmax:
    """logits (N, V) of this device's part of the vocabulary; target (N,), labels counted from the part's first id."""
    if group is None:
        probabilities = logits.softmax(-1, dtype=torch.float32)
        likeliest = probabilities.amax(-1)
        below = logits.amax(-1).float() - logits.gather(-1, target[:, None])[:, 0].float()
        return Softmax(probabilities, below - likeliest.log(), likeliest)  # log of the sum = -log of the likeliest
    logits = logits.float()
    here = (target >= 0) & (target < logits.shape[1])
    logit = logits.gather(-1, target.clamp(0, logits.shape[1] - 1)[:, None]) * here[:, None]
    highest = logits.amax(-1, keepdim=True)
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    exponentials = (logits - highest).exp_()
    sums = torch.stack([exponentials.sum(-1, keepdim=True), logit])
    dist.all_reduce(sums, group=group)
    nll = sums[0].log() + highest - sums[1]
    likeliest = torch.ones_like(highest) / sums[0]  # e^0, divided as the others are: equal to the last bit
    return Softmax(exponentials.div_(sums[0]), nll[:, 0], likeliest[:, 0])


LARGEST_EXPONENT = 700.0  # a float ends at e^709


def perplexity_of(loss: float) -> float:
    """exp(loss) of a mean loss in nats, at most e^700."""
    return math.exp(min(loss, LARGEST_EXPONENT))
