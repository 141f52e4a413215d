"""Text from a model, streamed to the terminal: the text alone on standard output."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict

from modules.config import GenerateConfig
from modules.places import is_registered

from . import pipeline
from .command_line import run_stage

KEY_VALUE = re.compile(r"(--)?[a-z_][a-z_.0-9]*=|--")


def generate(config: GenerateConfig) -> str:
    """Prints the prompt and its continuation as it comes (of a task model: the answer alone); returns it."""
    if is_registered(config.model):
        from modules.tracking import connect  # MLflow takes seconds to import, and a folder needs none of it

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


def with_prompt(arguments: list[str]) -> list[str]:
    """An argument that is neither key=value nor an option's value is the prompt."""
    result: list[str] = []
    for position, argument in enumerate(arguments):
        before = arguments[position - 1] if position else ""
        is_value = before.startswith("--") and "=" not in before
        result.append(argument if is_value or KEY_VALUE.match(argument) else f"prompt={argument}")
    return result


if __name__ == "__main__":
    arguments = sys.argv[1:]
    run_stage("generate", generate, arguments if {"--help", "-h"} & set(arguments) else with_prompt(arguments))
