"""What happens, in order: one short script a stage. `pipeline` is the way in for Python code that wants text."""

from __future__ import annotations

from typing import Any, Literal

from modules.text_generation import TextGenerator


def pipeline(
    task: str = "text-generation",
    model: str = "models:/moyun@champion",
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
    **defaults: Any,
) -> TextGenerator:
    """pipeline("text-generation", model=folder or models:/ URI)(text or list, **parameters) → {"text": …}.

    `dtype` is the number format to compute in, by default the one that the model is stored in; int8 is the fastest
    on a CPU. `defaults` are generation parameters (config.GenerationConfig) for every call; `.stream(text)` yields
    pieces.
    Raises ValueError for another task, an unknown model or a bad parameter.
    """
    from modules.checkpoint import load_for_inference
    from modules.text_generation import generation_config
    from modules.tokenizer import load_tokenizer
    from modules.tracking import connect, resolve_model

    if task != "text-generation":
        raise ValueError(f"task {task!r} isn't known here; moyun has 'text-generation'")
    connect()
    folder = resolve_model(model)
    return TextGenerator(load_for_inference(folder, dtype), load_tokenizer(folder), generation_config(**defaults))
