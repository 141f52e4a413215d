"""What happens, in order: one short script a stage. `pipeline` is the way in for Python code that wants text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modules.config.base import POEMS, TrackingConfig, is_registered, model_folder

if sys.argv[:1] == ["-m"]:  # python -m pipelines.STAGE, whose own imports come next
    from .cli.command_line import check_before_imports

    check_before_imports()

if TYPE_CHECKING:
    from modules.inference.prediction.row_generator import RowGenerator


def pipeline(
    task: str = "text-generation",
    model: str | Path = POEMS,
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
    **defaults: Any,
) -> RowGenerator:
    """Loads a model to generate text with: pipeline("text-generation", model=folder)("白日依山尽，") → {"text": …}.

    Args:
        task: only "text-generation" is known.
        model: a model folder or a models:/ URI; by default models/poems, which comes with moyun.
        dtype: number format to compute in; auto: the one that the model is stored in; int8: the fastest on a CPU.
        defaults: generation parameters (config.GenerationConfig) of every call that doesn't give its own.

    Raises:
        ValueError: another task, an unknown model or a bad parameter.
    """
    from modules.checkpoint.loading import load_verified
    from modules.config.generation import GenerationConfig
    from modules.inference.prediction.row_generator import RowGenerator

    if task != "text-generation":
        raise ValueError(f"task {task!r} isn't known here; moyun has 'text-generation'")
    config = GenerationConfig.parse(defaults)
    return RowGenerator(*load_verified(find_model(str(model)), dtype), config)


def find_model(model: str, tracking: TrackingConfig | None = None) -> Path:
    """The folder of a path or of a models:/ URI, for which MLflow is asked. Raises ValueError where there is none."""
    if not is_registered(model):
        return model_folder(model)
    from modules.tracking.registry import resolve_model
    from modules.tracking.stage_run import connected  # MLflow takes longer to import than a small model to load

    with connected(tracking):
        return resolve_model(model)
