"""The GPT-3 decoder in one file, torch only: attention, MLP, block, model.

Architecture: Brown et al. 2020 (GPT-3), pre-LayerNorm as in GPT-2, learned absolute positions, the word embeddings as
the output layer too. Parameter names are those of the published Chinese GPT-3 base checkpoints. The rows of
query_key_value go head by head, (q, k, v) in each, as in the published 1.3B and up, so that tensor parallelism keeps
heads whole.

Letters: B batch, T time, C hidden size, nh heads, hs head size, V vocabulary, S cache capacity,
N tokens of a batch laid end to end (N = B·T, or the sum of the document lengths).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .activation_checkpointing import Checkpointing, compiled_layer, run_layer
from .attention import Layout, attention, continued_attention, takes_any_lengths
from .kv_cache import KVCache
from .linear import LayerNorm, Linear

if TYPE_CHECKING:  # `import modules.model` loads torch and nothing else
    from ..config.model import ModelConfig


class Attention(nn.Module):
    __call__: Callable[..., Tensor]  # torch says Any

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_size = config.hidden_size // config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query_key_value = Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, layout: Layout, cache: KVCache | None) -> Tensor:
        qkv = self.query_key_value(x).unflatten(-1, (-1, 3, self.head_size))  # (N, nh, 3, hs)
        if cache is not None and cache.longest:  # one new token a row: (B, nh, 3, hs)
            return self.dense(cache.attend(self.layer, qkv))
        if layout.before:
            keep = partial(cache.prefill, self.layer) if cache is not None else lambda row, kv: None
            return self.dense(continued_attention(qkv, layout, self.layer, keep))
        if cache is not None:
            self.prefill(qkv, layout, cache)
        return self.dense(attention(qkv, layout, self.dropout if self.training else 0.0))

    def prefill(self, qkv: Tensor, layout: Layout, cache: KVCache) -> None:
        row, parts = 0, qkv.split([count * length for count, length in layout.groups])
        for (count, length), part in zip(layout.groups, parts, strict=True):
            cache.prefill(self.layer, row, part[:, :, 1:].unflatten(0, (count, length)).permute(0, 2, 3, 1, 4))
            row += count


class MLP(nn.Module):
    __call__: Callable[..., Tensor]  # torch says Any

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.hidden_act == "gelu_new" else "none"  # Hugging Face's names
        self.dense_h_to_4h = Linear(config.hidden_size, 4 * config.hidden_size)
        self.dense_4h_to_h = Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate=self.approximate))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, layer)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, layout: Layout, cache: KVCache | None) -> Tensor:
        x = x + self.dropout(self.attention(self.input_layernorm(x), layout, cache))
        result: Tensor = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return result


class Transformer(nn.Module):
    activation_checkpointing: Checkpointing = "none"
    """The training sets it."""
    compile_layers: bool = False
    """Whether layers are compiled where that is possible; the training sets it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.hidden_size // config.num_attention_heads
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.final_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, layout: Layout, cache: KVCache | None) -> Tensor:
        trains = self.training and torch.is_grad_enabled() and cache is None
        mode = self.activation_checkpointing if trains else "none"
        compiled = self.compile_layers and takes_any_lengths(x, self.head_size)
        run = compiled_layer() if compiled else run_layer
        for layer in self.layers:
            x = layer(x, layout, cache) if cache is not None else run(layer, x, layout, mode)
        normalized: Tensor = self.final_layernorm(x)
        return normalized


class LMHead(nn.Module):
    """The output layer: hidden states (…, C), word embeddings (V, C) → logits (…, V).

    It has no weights of its own; it is a module so that tensor parallelism can cut it.
    """

    __call__: Callable[..., Tensor]  # torch says Any

    def forward(self, hidden_states: Tensor, weight: Tensor) -> Tensor:
        return F.linear(hidden_states, weight.to(hidden_states.dtype))


class Decoder(nn.Module):
    """The GPT-3 decoder: decoder(input_ids (B, T) int64) → logits (B, T, V)."""

    __call__: Callable[..., Tensor]  # torch says Any
    compute_dtype: torch.dtype | None = None
    """The number format of activations and matrix products without a cache, so in training; None: the weights' own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        assert config.vocab_size, "vocab_size must be set (from the tokenizer) before a decoder is built"
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embedding_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.transformer = Transformer(config)
        self.head = LMHead()

    def forward(
        self,
        input_ids: Tensor,
        document_lengths: Sequence[int] | Layout | None = None,
        cache: KVCache | None = None,
        head: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token after each position, or what `head` makes of the hidden states.

        Args:
            input_ids: (B, T) int64; with document_lengths (1, N), documents laid end to end.
            document_lengths: Tokens of each document, or their Layout, on the same device; each document attends to
                itself alone and counts its positions from 0, or goes on from keys and values in Layout.before.
            cache: The first call fills row i from document i; each later call takes (B, 1), the next token a row.
            head: Takes the place of the output layer: (hidden states (B, T, C), word embeddings (V, C)) → a loss, or
                the logits of a few positions. It runs inside forward, where weights spread over devices are whole.

        Raises:
            ValueError: A document is longer than max_position_embeddings.
        """
        hidden_states = self.hidden_states(input_ids, document_lengths, cache)
        return (head or self.head)(hidden_states, self.word_embeddings.weight)

    def hidden_states(
        self, input_ids: Tensor, document_lengths: Sequence[int] | Layout | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """What the output layer sees, (B, T, C); arguments as in `forward`."""
        rows, time = input_ids.shape
        decoding = cache is not None and cache.longest > 0
        if isinstance(document_lengths, Layout):
            layout = document_lengths
        elif decoding and cache is not None:
            layout = Layout([1] * rows, cache.lengths, cache.lengths, 1)  # nothing is made anew for a token
        else:
            layout = Layout.of([time] * rows if document_lengths is None else document_lengths, input_ids.device)
        assert len(layout.positions) == input_ids.numel(), (len(layout.positions), input_ids.shape)
        if not decoding and max(layout.ends) > self.config.max_position_embeddings:
            raise ValueError(
                f"a text of {max(layout.ends)} tokens is longer than the model's "
                f"max_position_embeddings ({self.config.max_position_embeddings}); shorten or split it"
            )
        x = self.word_embeddings(input_ids.flatten()) + self.position_embeddings(layout.positions)  # (N, C)
        x = self.embedding_dropout(x)
        if cache is None:
            x = self.transformer(x.to(self.compute_dtype or x.dtype), layout, None)
        else:
            x = self.transformer(x, layout, cache)
            cache.advance(layout.ends)
        result: Tensor = x.unflatten(0, (rows, time))
        return result

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Overwrites all weights with fresh ones, drawn from `generator`."""
        for name, parameter in self.named_parameters():
            init_parameter(name, parameter, self.config, generator)


def init_parameter(name: str, parameter: Tensor, config: ModelConfig, generator: torch.Generator | None) -> None:
    """GPT-2's initialisation: N(0, initializer_range), residual projections ÷ √(2·layers), biases 0."""
    if name.endswith("layernorm.weight"):
        parameter.fill_(1.0)
    elif name.endswith("bias"):
        parameter.zero_()
    else:
        residual = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
        std = config.initializer_range / (math.sqrt(2 * config.num_hidden_layers) if residual else 1.0)
        parameter.normal_(0.0, std, generator=generator)


def parameter_count(config: ModelConfig) -> int:
    """Parameters by formula: embeddings (V + P)·C, 12·C² + 13·C a layer, 2·C in the last LayerNorm."""
    c = config.hidden_size
    assert config.vocab_size
    embeddings = (config.vocab_size + config.max_position_embeddings) * c
    return embeddings + config.num_hidden_layers * (12 * c * c + 13 * c) + 2 * c


class EmptyOnMeta(TorchFunctionMode):
    """Puts the results of torch.empty on the meta device: torch's own modules make their parameters with it.

    There is nothing to initialise there, and torch would import its compiler for it, which takes 0.9 s.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        if func is torch.empty:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))


def meta_decoder(config: ModelConfig) -> Decoder:
    """A decoder with parameters on the meta device (no memory, no values), and with buffers as they were computed."""
    with EmptyOnMeta():
        return Decoder(config)


def allocate(decoder: nn.Module, device: str | torch.device) -> None:
    """Gives parameters on the meta device memory, in place, without values; buffers are moved and keep theirs."""
    decoder._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))


def build_decoder(config: ModelConfig, seed: int) -> Decoder:
    """A decoder on the CPU with fresh weights, the same ones for the same seed."""
    decoder = meta_decoder(config)  # so that the weights are written only once
    allocate(decoder, "cpu")
    decoder.init_weights(torch.Generator().manual_seed(seed))
    return decoder


def fresh_tensors(config: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """The (name, tensor) pairs of `build_decoder`, one at a time: for a decoder that is spread over devices."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in meta_decoder(config).named_parameters():
        tensor = torch.empty(parameter.shape)
        init_parameter(name, tensor, config, generator)
        yield name, tensor
