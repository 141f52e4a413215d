"""What the hardware gives: its facts, and turns that do nothing but the work that can't be avoided."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.system.hardware import describe_machine

from .steps import interleaved
from .work import Work

VERSIONS = ("torch", "transformers", "ctranslate2", "litgpt", "xllamacpp")

HEAD_ROWS = 512
"""Rows of logits at once: nobody needs to hold them all."""

GPU_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bf16 FLOP/s with float32 accumulation, of the SXM cards where there are several, from NVIDIA's data sheets."""


def facts(threads: int) -> dict[str, str]:
    """The machine, the day and the versions."""
    return describe_machine(threads) | {"date": time.strftime("%Y-%m-%d"), "versions": ", ".join(installed())}


def installed() -> Iterator[str]:
    for name in VERSIONS:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def gpu_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s of a card by torch's name for it; None for one that isn't in the table."""
    slower = "PCIe" in name or "NVL" in name
    return next((peak for card, peak in GPU_PEAKS.items() if card in name and not slower), None)


def flops_per_token(model: dict[str, Any], context: float) -> float:
    """Floating-point operations of forward and backward pass: 6 for each element of a matrix, and attention's.

    context: tokens that a token attends to, on average: half a document (the formula of PaLM's appendix B, with
    the causal half alone).
    """
    width, layers = model["hidden_size"], model["num_hidden_layers"]
    matrices = 12 * layers * width**2 + model["vocab_size"] * width
    return 6 * matrices + 12 * layers * width * context


def products(work: Work, tokens: int, repeats: int, bfloat16: bool = False) -> Any:
    """The matrix products of a training step, forward and both backward, and nothing else: tokens a second.

    Each shape by the faster of the two libraries that torch carries (MKL keeps to AVX2 on AMD's processors).
    """
    torch.manual_seed(work.seed)
    width, vocabulary, layers = (work.model[name] for name in ("hidden_size", "vocab_size", "num_hidden_layers"))
    rows = min(HEAD_ROWS, tokens)
    shapes = [
        (tokens, width, 3 * width),
        (tokens, width, width),
        (tokens, width, 4 * width),
        (tokens, 4 * width, width),
    ]
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    calls = [product(*shape, layers, library, dtype) for shape in shapes for library in LIBRARIES]
    calls += [product(rows, width, vocabulary, 1, library, dtype) for library in LIBRARIES]
    medians = [median(found) for found in interleaved(calls, repeats)]
    count = len(LIBRARIES)
    fastest = [min(medians[start : start + count]) for start in range(0, len(medians), count)]
    step = layers * sum(fastest[:-1]) + fastest[-1] * tokens / rows
    flops = 6 * tokens * (12 * layers * width**2 + vocabulary * width)
    return {"value": tokens / step, "flops_per_second": flops / step, "ended_at": time.time()}


def product(
    rows: int, inputs: int, outputs: int, copies: int, library: Product, dtype: torch.dtype
) -> Callable[[], None]:
    """A call that does a layer's three products, each time with the next layer's weights, as a step does."""
    x, dy = torch.randn(rows, inputs, dtype=dtype), torch.randn(rows, outputs, dtype=dtype)
    weights = cycle([torch.randn(outputs, inputs, dtype=dtype) for _ in range(copies)])

    def call() -> None:
        weight = next(weights)
        library(x, weight)
        library(dy, weight.T)
        library(dy.T, x.T)

    return call


def onednn(a: Tensor, b: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return result


Product = Callable[[Tensor, Tensor], Tensor]
"""a (N, K), b (M, K) → a·bᵀ (N, M)"""

LIBRARIES: list[Product] = [F.linear, *([onednn] if torch.backends.mkldnn.is_available() else [])]


def reading(work: Work, rows: int, bytes_per_weight: int) -> Any:
    """Reading every weight once for each new token of all rows, and nothing else: tokens a second."""
    from modules.config.model import ModelConfig
    from modules.model.decoder import parameter_count

    names = ModelConfig.__dataclass_fields__
    model = ModelConfig(**{name: value for name, value in work.model.items() if name in names})
    unread = (model.max_position_embeddings - 1) * model.hidden_size  # a token takes one row of these
    weights = torch.ones((parameter_count(model) - unread) * bytes_per_weight // 4)
    seconds = median(interleaved([weights.sum], 10)[0])
    return {"value": rows / seconds, "bytes_per_second": weights.nbytes / seconds, "ended_at": time.time()}
