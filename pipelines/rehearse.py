"""Whether a layout over many devices would run: shapes and bytes a rank, and the numbers of a narrow model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from modules.checkpoint.weights import shape_differences
from modules.config.commands import RehearseConfig
from modules.config.model import ModelConfig
from modules.training.planning.rehearsal import elements, expected_shapes, narrow, rehearse_numbers, rehearse_shapes

from .cli.command_line import console, run_stage, show


class RehearsalError(ValueError):
    """A rank holds something else than the closed formula says, or several processes train differently from one."""


@dataclass(frozen=True)
class RehearseResult:
    parameters: int
    """Elements on the fullest rank."""
    difference: float
    """Largest relative difference between the losses of four processes and of one."""


def rehearse(config: RehearseConfig) -> RehearseResult:
    """Raises RehearsalError where the layout doesn't hold or doesn't compute what it should."""
    model: ModelConfig = config.model
    model.vocab_size = model.vocab_size or 50257  # GPT-3's
    layout = (config.nodes * config.devices // config.tensor_parallel, config.tensor_parallel)
    parameters = rehearse_ranks(model, layout, sorted({0, layout[0] * layout[1] - 1}), config.tokens)
    show(f"rehearse: {layout[0]} × {layout[1]} devices (rows × matrices)", described(model, layout, parameters))
    small, processes = narrow(model), (2, 2) if model.num_attention_heads % 2 == 0 else (4, 1)
    with console.status("a narrow model, on one process and on four"):
        alone, together = rehearse_numbers(small, *processes)
    difference = float(((together - alone) / alone).abs().max())
    show(
        f"rehearse: {small.num_hidden_layers} layers of width {small.hidden_size}, losses of three steps",
        {
            "1 process": listed(alone),
            f"{processes[0]} × {processes[1]} processes": listed(together),
            "largest difference": f"{difference:.1e}",
        },
    )
    if not difference <= 1e-5:
        raise RehearsalError(f"four processes train differently from one: losses differ by {difference:.1e}")
    return RehearseResult(parameters, difference)


def rehearse_ranks(model: ModelConfig, layout: tuple[int, int], ranks: list[int], tokens: int) -> int:
    """Elements on the fullest of them."""
    with console.status("the first rank and the last on fake tensors, forward and backward"):
        runs = rehearse_shapes(model, *layout, ranks, tokens)
    for rank, found in zip(ranks, runs, strict=True):
        expected = expected_shapes(model, *layout, rank)
        complaints = list(shape_differences(expected, found.shapes))
        if found.gradient_elements != elements(expected):
            complaints.append(f"gradients have {found.gradient_elements:,} elements, not {elements(expected):,}")
        if complaints:
            raise RehearsalError(f"rank {rank} doesn't hold what it should: " + "; ".join(complaints[:5]))
    return max(elements(run.shapes) for run in runs)


def described(model: ModelConfig, layout: tuple[int, int], parameters: int) -> dict[str, str]:
    whole = elements(expected_shapes(model, 1, 1, 0))
    state = 16 * parameters  # float32 weights, gradients and AdamW's two moments
    return {
        "parameters": f"{whole:,}",
        "on the fullest rank": f"{parameters:,} (an equal share would be {whole / layout[0] / layout[1]:,.0f})",
        "weights, gradients, optimizer": f"{state / 2**30:.2f} GiB a rank in float32",
        "shapes": "as the closed formula says, on the first rank and the last",
    }


def listed(losses: Tensor) -> str:
    return ", ".join(f"{loss:.7f}" for loss in losses.tolist())


if __name__ == "__main__":
    run_stage("rehearse", rehearse)
