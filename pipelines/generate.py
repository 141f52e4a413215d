"""Text from a model, streamed to the terminal: the text alone on standard output."""

from __future__ import annotations

import sys
from dataclasses import asdict

from modules.checkpoint.loading import is_registered
from modules.config.generation import GenerateConfig
from pipelines import pipeline

from .cli.command_line import run_stage, with_positions


def generate(config: GenerateConfig) -> str:
    """Prints the prompt and its continuation as it comes (of a task model: the answer alone); returns it."""
    if is_registered(config.model):
        from modules.tracking.stage_run import connect  # MLflow takes seconds to import, and a folder needs none of it

        connect(config.tracking)
    generator = pipeline(
        "text-generation",
        model=config.model,
        dtype=config.dtype,
        backend=config.backend,
        **asdict(config.generation),
    )
    pieces = [config.prompt] if generator.tokenizer.prompt_template is None else []
    print("".join(pieces), end="", flush=True)
    for piece in generator.stream(config.prompt):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces)


if __name__ == "__main__":
    run_stage("generate", generate, with_positions(sys.argv[1:], "prompt"))
