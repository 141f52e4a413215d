"""Floating-point operations of a training step, as utilization is counted (MFU, appendix B of the PaLM paper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def flops_per_token(model: Mapping[str, Any], context: float) -> float:
    """Of forward and backward pass: 6 for each element of a matrix, and attention's.

    model: names and values of a ModelConfig. context: tokens that a token attends to, on average: half a document, as
    the causal half alone is counted.
    """
    width, layers = model["hidden_size"], model["num_hidden_layers"]
    matrices = 12 * layers * width**2 + model["vocab_size"] * width
    return 6 * matrices + 12 * layers * width * context


def step_flops(model: Mapping[str, Any], lengths: np.ndarray) -> float:
    """Of a step over documents of these lengths."""
    tokens = int(lengths.sum())
    return tokens * flops_per_token(model, float(np.square(lengths).sum()) / 2 / max(tokens, 1))
