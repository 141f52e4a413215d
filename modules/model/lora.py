"""LoRA (Hu et al. 2021): low-rank adapters beside frozen matrices, for fine-tuning what doesn't fit otherwise.

Written here because `peft` would bring transformers and accelerate into the core install.
The word embeddings, and the head that is tied to them, are not adapted. Files of adapters: checkpoint/adapter.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear

if TYPE_CHECKING:
    from ..config.model import LoraConfig, ModelConfig

WIDTHS = {"query_key_value": (1, 3), "dense": (1, 1), "dense_h_to_4h": (1, 4), "dense_4h_to_h": (4, 1)}
"""Inputs and outputs of each matrix, in multiples of hidden_size."""


class LoraLinear(Linear):
    """A linear layer and its adapter: x (…, in) → x·Wᵀ + b + dropout(x)·Aᵀ·Bᵀ·alpha/rank.

    weight and bias are those of `base` and keep their names. lora_a (rank, in) and lora_b (out, rank) are float32
    beside weights of any type and compute in the type of x: small updates would vanish in bf16's 8 bits.
    """

    def __init__(self, base: Linear, config: LoraConfig) -> None:
        super().__init__(base.in_features, base.out_features, device="meta")  # no memory: the next line replaces it
        self.weight, self.bias = base.weight, base.bias
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.zeros(config.rank, base.in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        low_rank = F.linear(self.dropout(x), self.lora_a.to(x.dtype))
        return super().forward(x) + F.linear(low_rank, self.lora_b.to(x.dtype)) * self.scale


def add_lora(decoder: nn.Module, config: LoraConfig, seed: int) -> list[str]:
    """Puts adapters beside the target modules, in place, and freezes the rest; outputs stay as they are (lora_b is 0).

    On the meta device only shapes are made: copy the values of `initial_adapters` once there is memory.
    Returns the names of the trainable parameters. Raises ValueError where no linear layer has the name of a target.
    """
    linear = {name: module for name, module in decoder.named_modules() if type(module) is Linear}
    for target in config.target_modules:
        if not any(is_target(name, [target]) for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "nothing"
            raise ValueError(f"lora.target_modules: no linear layer is called {target}; there is {known}")
    decoder.requires_grad_(False)
    for name, module in linear.items():
        if is_target(name, config.target_modules):
            decoder.set_submodule(name, LoraLinear(module, config))
    values = initial_adapters(decoder, seed)
    with torch.no_grad():
        for name, value in values.items():
            decoder.get_parameter(name).copy_(value)  # nothing happens on the meta device
    return list(values)


def is_target(name: str, targets: list[str]) -> bool:
    """Whether one of the targets is the end of a module's dotted name."""
    return any(f".{name}".endswith(f".{target}") for target in targets)


def adapted(decoder: nn.Module) -> dict[str, LoraLinear]:
    """The layers with adapters, by module name."""
    return {name: module for name, module in decoder.named_modules() if isinstance(module, LoraLinear)}


def initial_adapters(decoder: nn.Module, seed: int) -> dict[str, Tensor]:
    """Fresh adapters by parameter name, on the CPU: lora_a uniform within ±1/√in, lora_b zero.

    One seed gives the same values on any device and however the decoder is sharded.
    """
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, Tensor] = {}
    for name, module in adapted(decoder).items():
        lora_a = torch.empty(module.lora_a.shape)
        values[f"{name}.lora_a"] = nn.init.kaiming_uniform_(lora_a, a=math.sqrt(5), generator=generator)
        values[f"{name}.lora_b"] = torch.zeros(module.lora_b.shape)
    return values


def merged(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    """weight + lora_b·lora_a·scale, added in float32, in the number format of `weight`."""
    a, b = (part.to(weight.device, torch.float32) for part in (lora_a, lora_b))
    return torch.addmm(weight.float(), b, a, alpha=scale).to(weight.dtype)


def lora_parameter_count(config: ModelConfig, lora: LoraConfig) -> int:
    """Trainable parameters by formula: rank·(in + out) for each target in each layer."""
    widths = [WIDTHS[name] for name in {target.rpartition(".")[2] for target in lora.target_modules}]
    return config.num_hidden_layers * lora.rank * config.hidden_size * sum(map(sum, widths))
