"""The architecture (Hugging Face's key names), the sizes of the family, and low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .base import MISSING, not_positive, out_of_range, too_large, too_small

ADAPTABLE = ("query_key_value", "dense", "attention.dense", "dense_h_to_4h", "dense_4h_to_h")
"""Names of a layer's matrices; attention.dense is dense's longer name."""


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): the model is frozen, and small matrices beside its own are trained."""

    rank: int = 0
    """Rank of each adapter; 0: no adapters, all weights are trained."""
    alpha: float = 16
    """An adapter's product is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on what goes into the adapters, in training."""
    target_modules: list[str] = field(default_factory=lambda: ["query_key_value"])
    """Matrices that get one in each layer: query_key_value, dense (attention's), dense_h_to_4h, dense_4h_to_h."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 0, "rank")
        yield from not_positive(self, "alpha")
        yield from out_of_range(self, "dropout")
        for name in self.target_modules:
            if name not in ADAPTABLE:
                yield f"target_modules ({name}) must be of {', '.join(ADAPTABLE)}"
        if not self.rank and self != LoraConfig():
            yield "rank must be given, or no adapters are made of the other keys of lora"
        if self.rank and not self.target_modules:
            yield f"target_modules must name what gets adapters of rank {self.rank}"


@dataclass
class ModelConfig:
    """The architecture, in Hugging Face's names. Defaults are what the family's sizes share."""

    vocab_size: int | None = None
    """Ids of the embedding and the head; unset: the tokenizer's size."""
    hidden_size: int = MISSING
    """Width of a layer (d_model)."""
    num_hidden_layers: int = MISSING
    """Decoder blocks."""
    num_attention_heads: int = MISSING
    """Heads; must divide hidden_size."""
    max_position_embeddings: int = 2048
    """Learned positions: the longest text in tokens."""
    hidden_act: Literal["gelu", "gelu_new"] = "gelu"
    """gelu: exact (erf); gelu_new: its tanh approximation."""
    layer_norm_eps: float = 1e-5
    """Added to the variance in LayerNorm."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    hidden_dropout_prob: float = 0.0
    """Dropout on embeddings and on each residual branch, in training."""
    attention_probs_dropout_prob: float = 0.0
    """Dropout on attention weights, in training; above 0 it costs the fused kernel."""

    def complaints(self) -> Iterator[str]:
        counts = "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "vocab_size"
        yield from too_small(self, 1, *counts)
        yield from too_large(self, 1_000, "num_hidden_layers")
        yield from too_large(self, 1_000_000, "hidden_size")
        yield from too_large(self, 1_000_000_000, "max_position_embeddings", "vocab_size")
        yield from not_positive(self, "layer_norm_eps", "initializer_range")
        yield from out_of_range(self, "hidden_dropout_prob", "attention_probs_dropout_prob")
        heads = self.num_attention_heads
        if heads > 0 and self.hidden_size % heads:
            yield f"hidden_size ({self.hidden_size}) must be divisible by num_attention_heads ({heads})"


@dataclass
class SizeConfig(ModelConfig):
    """A row of the table in ModelScope's model cards: an architecture, and the recipe to pretrain it with.

    learning_rate and batch_tokens are that recipe (docs/recipes.md) and no part of the model: folders don't hold them,
    and train.learning_rate, train.batch_tokens and train.batch_size win over them.
    """

    learning_rate: float = MISSING
    """Peak learning rate, used where train.learning_rate is unset."""
    batch_tokens: int = MISSING
    """Tokens an optimizer step, used where neither train.batch_tokens nor train.batch_size is set."""

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        yield from not_positive(self, "learning_rate")
        yield from too_small(self, 1, "batch_tokens")
