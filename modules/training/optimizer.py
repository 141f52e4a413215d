"""Optimizers and learning-rate schedules by the names that configuration gives them, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Adafactor, AdamW, Muon, Optimizer

from ..config.training import TrainConfig

Named = Iterable[tuple[str, nn.Parameter]]
"""Parameters with their names in the decoder, as `named_parameters` gives them."""

Shape = Sequence[float]
"""Of a parameter on one device; a share of a cut one need not be whole."""


@dataclass(frozen=True)
class OptimizerKind:
    """How an optimizer is built, and what memory it takes, counted in numbers of the weights' own format."""

    build: Callable[[Named, TrainConfig, float], Optimizer]
    """(trained parameters, configuration, peak learning rate) → the optimizer."""
    state: Callable[[Shape, bool], float]
    """(a parameter's shape, whether it is a matrix of a layer) → numbers kept from step to step."""
    temporary: Callable[[Shape, bool], float]
    """The same → numbers alive while that parameter is updated."""


def make_optimizer(parameters: Named, config: TrainConfig, learning_rate: float) -> Optimizer:
    """The optimizer that `train.optimizer` names, over these parameters and with nothing learnt yet."""
    return OPTIMIZERS[config.optimizer].build(parameters, config, learning_rate)


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a matrix inside a layer, adapters included, and not the embeddings or the head."""
    return parameter.dim() >= 2 and ".layers." in f".{name}"


def adamw(parameters: Named, config: TrainConfig, learning_rate: float) -> Optimizer:
    """Decays matrices and leaves LayerNorms and biases alone (GPT-2's practice)."""
    betas = config.beta1, config.beta2
    return AdamW(decay_groups(parameters, config), learning_rate, betas, config.epsilon, fused=True)


def adafactor(parameters: Named, config: TrainConfig, learning_rate: float) -> Optimizer:
    """Shazeer and Stern 2018: of a matrix's squared gradients only the mean of each row and each column is kept."""
    return Adafactor(decay_groups(parameters, config), learning_rate)


def muon(parameters: Named, config: TrainConfig, learning_rate: float) -> Optimizer:
    """Jordan et al. 2024: orthogonalized momentum for the layers' matrices, AdamW for embeddings, norms and biases."""
    named = list(parameters)
    matrices = [parameter for name, parameter in named if is_hidden_matrix(name, parameter)]
    rest = [(name, parameter) for name, parameter in named if not is_hidden_matrix(name, parameter)]
    # Steps as long as AdamW's, so that a learning rate serves both (Liu et al. 2025).
    options = {"weight_decay": config.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    first = Muon(matrices, learning_rate, **options)  # type: ignore[arg-type]
    return JointOptimizer([first, adamw(rest, config, learning_rate)] if rest else [first])


def decay_groups(parameters: Named, config: TrainConfig) -> list[dict[str, Any]]:
    every = [parameter for _, parameter in parameters]
    return [
        {"params": [p for p in every if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in every if p.dim() < 2], "weight_decay": 0.0},
    ]


class JointOptimizer(Optimizer):
    """Several optimizers, each over parameters of its own, that Lightning, schedulers and checkpoints see as one."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = parts
        self.counts = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:  # Lightning's, which does nothing
            closure()
        groups = iter(self.param_groups)
        for part, count in zip(self.parts, self.counts, strict=True):
            # Loading a checkpoint replaces both, so they are handed over at each step.
            part.param_groups = [next(groups) for _ in range(count)]
            part.state = self.state
            part.step()


OPTIMIZERS = {
    "adamw": OptimizerKind(adamw, lambda shape, hidden: 2 * math.prod(shape), lambda shape, hidden: 0),
    "adafactor": OptimizerKind(adafactor, lambda shape, hidden: sum(shape), lambda shape, hidden: math.prod(shape)),
    "muon": OptimizerKind(
        muon,
        lambda shape, hidden: math.prod(shape) * (1 if hidden else 2),
        lambda shape, hidden: 3 * math.prod(shape) if hidden else 0,
    ),
}
"""What train.optimizer can name. Adafactor keeps a row and a column of a matrix, and of a vector all."""


def scale_gradients(gradients: Sequence[Tensor], norm: float, limit: float) -> None:
    """Scales all gradients, of which `norm` is the common 2-norm, so that it is at most `limit`."""
    if norm > limit:
        local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
        torch._foreach_mul_(local, limit / norm)


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all gradients together; those on different meshes can't be added up before they are plain."""
    by_mesh: dict[object, list[Tensor]] = {}
    for gradient in gradients:
        by_mesh.setdefault(gradient.device_mesh if isinstance(gradient, DTensor) else None, []).append(gradient)
    norms = [torch.nn.utils.get_total_norm(part) for part in by_mesh.values()]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(whole))


# --- schedules: what the peak learning rate is multiplied with at optimizer step 0, 1, 2 … ---


def warmup_of(config: TrainConfig) -> int:
    assert config.warmup_steps, "the recipe sets it where it isn't given"
    return config.warmup_steps


def noam(step: int, config: TrainConfig, total_steps: int) -> float:
    """min((s+1)^-0.5, (s+1)·warmup^-1.5), Vaswani et al. 2017 without its width factor, as the original recipe."""
    return min((step + 1) ** -0.5, (step + 1) * warmup_of(config) ** -1.5)


def constant(step: int, config: TrainConfig, total_steps: int) -> float:
    """Linear warm-up to 1."""
    return min(1.0, (step + 1) / warmup_of(config))


def cosine(step: int, config: TrainConfig, total_steps: int) -> float:
    """Linear warm-up to 1, then half a cosine to min_learning_rate_ratio at the last step (GPT-3, appendix B)."""
    warmup = warmup_of(config)
    progress = (step + 1 - warmup) / max(1, total_steps - warmup)
    decay = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    ratio = config.min_learning_rate_ratio
    return min(constant(step, config, total_steps), ratio + (1 - ratio) * decay)


def warm_up_stable_decay(step: int, config: TrainConfig, total_steps: int) -> float:
    """Linear warm-up to 1, there until the last decay_fraction of all steps, then a line to the last one's ratio."""
    left = (total_steps - step - 1) / (config.decay_fraction * total_steps)
    ratio = config.min_learning_rate_ratio
    return min(constant(step, config, total_steps), ratio + (1 - ratio) * min(max(left, 0.0), 1.0))


SCHEDULES = {"noam": noam, "cosine": cosine, "constant": constant, "wsd": warm_up_stable_decay}
"""What train.schedule can name: (step, configuration, all steps) → factor."""


def learning_rate_factor(step: int, config: TrainConfig, total_steps: int) -> float:
    """What the peak learning rate is multiplied with at a step."""
    return SCHEDULES[config.schedule or "cosine"](step, config, total_steps)
