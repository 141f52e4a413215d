"""Learning-rate schedules as pure functions of the optimizer step s = 0, 1, 2 …"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..config.training import TrainConfig


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """Scales all gradients so that their common 2-norm is at most `limit`; returns what it was."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = float(gradient_norm(gradients))
    if norm > limit:
        local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
        torch._foreach_mul_(local, limit / norm)
    return norm


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all gradients together; those on different meshes can't be added up before they are plain."""
    by_mesh: dict[object, list[Tensor]] = {}
    for gradient in gradients:
        by_mesh.setdefault(gradient.device_mesh if isinstance(gradient, DTensor) else None, []).append(gradient)
    norms = [torch.nn.utils.get_total_norm(part) for part in by_mesh.values()]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(whole))


def noam(step: int, warmup_steps: int) -> float:
    """min((s+1)^-0.5, (s+1)·warmup^-1.5), Vaswani et al. 2017 without its width factor, as the original recipe."""
    return min((step + 1) ** -0.5, (step + 1) * warmup_steps**-1.5)


def warm_up(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps)


def cosine(step: int, warmup_steps: int, total_steps: int, final_ratio: float) -> float:
    """Linear warm-up to 1, then half a cosine to final_ratio at the last step (GPT-3, appendix B)."""
    progress = (step + 1 - warmup_steps) / max(1, total_steps - warmup_steps)
    decay = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return min(warm_up(step, warmup_steps), final_ratio + (1 - final_ratio) * decay)


def learning_rate_factor(step: int, config: TrainConfig, total_steps: int) -> float:
    """What the peak learning rate is multiplied with at a step."""
    match config.schedule:
        case "noam":
            return noam(step, config.warmup_steps)
        case "cosine":
            return cosine(step, config.warmup_steps, total_steps, config.min_learning_rate_ratio)
        case "constant":
            return warm_up(step, config.warmup_steps)
