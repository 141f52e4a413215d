"""Text from a model, streamed to the terminal: the text alone on standard output."""

from __future__ import annotations

import sys
from dataclasses import asdict

from modules.config.prediction import GenerateConfig
from modules.inference.asked_task import asking

from . import find_model, pipeline
from .cli.command_line import run_stage, with_positions
from .cli.printing import stream_text


def generate(config: GenerateConfig) -> str:
    """The prompt and its continuation (of a task model the answer alone), printed as it is written."""
    folder = find_model(config.chosen_model, config.tracking)
    generator = pipeline(model=str(folder), dtype=config.dtype, **asdict(config.generation))
    generator.tokenizer = asking(generator.tokenizer, config.task)
    prompt = [config.prompt] if generator.returns_full_text else []
    return stream_text(prompt, generator.stream(config.prompt))


if __name__ == "__main__":
    run_stage("generate", generate, with_positions(sys.argv[1:], "prompt", stage="generate"))
