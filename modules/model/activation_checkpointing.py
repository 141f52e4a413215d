"""How a layer of the decoder is run in training: what is kept for the backward pass, and whether it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from .attention import Layout

Checkpointing = Literal["none", "selective", "full"]
"""How much of each layer is computed again in the backward pass, to save memory."""


def run_layer(layer: nn.Module, x: Tensor, layout: Layout, mode: Checkpointing) -> Tensor:
    """The layer's result; for the backward pass `full` keeps its input alone, `selective` also what costs most."""
    if mode == "none":
        result: Tensor = layer(x, layout, None)
        return result
    options: dict[str, Any] = {"preserve_rng_state": uses_dropout(layer)}
    if mode == "selective":
        options["context_fn"] = SELECTIVE[bool(layer.dropout.p), bool(layer.attention.dropout)]  # type: ignore[union-attr]
    recomputed: Tensor = checkpoint(layer, x, layout, None, use_reentrant=False, **options)
    return recomputed


@cache
def compiled_layer() -> Callable[[nn.Module, Tensor, Layout, Checkpointing], Tensor]:
    """`run_layer`, compiled once for all layers, checkpointing included: outside, its policy would see no operators."""
    import torch._dynamo  # takes half a second

    # A model takes about four graphs; a process may train several, and torch's own limit is eight.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    torch._dynamo.config.optimize_ddp = False  # it would cut the layer's graph where DDP's buckets end
    return torch.compile(run_layer, fullgraph=True, dynamic=True)  # the same code from the first step on


def uses_dropout(layer: Any) -> bool:
    """Whether a Block or its adapters draw random numbers: only then is the generators' state worth saving."""
    return bool(layer.attention.dropout) or any(isinstance(m, nn.Dropout) and m.p for m in layer.modules())


def selective_checkpoint_policy(
    context: Any, operator: Any, *args: Any, dropout: bool, attention_dropout: bool, **kwargs: Any
) -> CheckpointPolicy:
    """Selective checkpointing keeps matrix products and attention; LayerNorm, GELU and dropout are computed again."""
    name: str = operator.name()
    keep = name in ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise")
    if keep and not dropout:
        # The backward pass doesn't need the result of the MLP's second product: recomputation ends before it.
        inputs, outputs = args[1].shape[::-1] if name.startswith("mkldnn") else args[-1].shape
        keep = inputs <= outputs
    if name.startswith(("aten::_scaled_dot_product", "aten::_flash_attention", "torch_attn::_varlen_attn")):
        # If attention isn't computed again, it draws no random numbers, and all later dropouts would get other ones.
        keep = not attention_dropout
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = {
    (hidden, attention): partial(
        create_selective_checkpoint_contexts,
        partial(selective_checkpoint_policy, dropout=hidden, attention_dropout=attention),
    )
    for hidden in (False, True)
    for attention in (False, True)
}
"""By whether there is dropout, and in attention: one object for all layers, so that they share what is compiled."""
