"""What happens, in order: one short script a stage. `pipeline` is the way in for Python code that wants text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modules.checkpoint.loading import is_registered, model_folder
from modules.config.base import EMBEDDED

if TYPE_CHECKING:
    from modules.inference.text_generator import TextGenerator


def pipeline(
    task: str = "text-generation",
    model: str = EMBEDDED,
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
    backend: Literal["torch", "llama_cpp"] = "torch",
    **defaults: Any,
) -> TextGenerator:
    """pipeline("text-generation", model=folder or models:/ URI)(text or list, **parameters) → {"text": …}.

    Without `model` it is the one that comes with moyun, pretrained on classical poems.
    `dtype` is the number format to compute in, by default the one that the model is stored in; int8 is the fastest
    on a CPU. `defaults` are generation parameters (config.GenerationConfig) for every call; `.stream(text)` yields
    pieces.
    backend="llama_cpp" takes a folder that convert wrote with format=gguf, whose number format was chosen then.
    Raises ValueError for another task, an unknown model or a bad parameter.
    """
    from modules.checkpoint.loading import load_verified
    from modules.inference.text_generator import TextGenerator, generation_config

    if task != "text-generation":
        raise ValueError(f"task {task!r} isn't known here; moyun has 'text-generation'")
    if backend == "llama_cpp":
        from modules.inference.llama_cpp import load_llama_cpp

        return TextGenerator(*load_llama_cpp(model), generation_config(**defaults))
    if backend != "torch":
        raise ValueError(f"backend={backend!r} must be torch or llama_cpp")
    folder = registered_model(model) if is_registered(model) else model_folder(model)
    return TextGenerator(*load_verified(folder, dtype), generation_config(**defaults))


def registered_model(uri: str) -> Path:
    from modules.tracking.registry import resolve_model
    from modules.tracking.stage_run import connect  # MLflow takes longer to import than a small model to load

    connect()
    return resolve_model(uri)
