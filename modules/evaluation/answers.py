"""What a model writes to many prompts, batch by batch, and whether it came to an end by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..config.generation import GenerationConfig
from ..inference.prediction.answering import batches
from ..inference.text_generator import TextGenerator
from ..model.decoder import Decoder
from ..tokenizer.prompt_template import Message, fit_prompt, prompt_limit
from ..tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answer:
    text: str
    stopped: bool | None
    """Whether end-of-text (or a stop text) ended it, and not max_new_tokens or the model's last position.

    None where no model wrote it."""
    cut: bool = False
    """Whether the prompt had to lose the end of its source, or earlier turns, to fit."""


def write_answers(
    decoder: Decoder,
    tokenizer: Tokenizer,
    sources: Sequence[str | Sequence[Message]],
    config: GenerationConfig,
    max_batch_tokens: int = 8192,
    progress: Callable[[float], None] | None = None,
) -> list[Answer]:
    """An answer a source or conversation, in order; a batch fills at most max_batch_tokens positions, or is one row."""
    positions = decoder.config.max_position_embeddings
    limit = max(prompt_limit(positions, config.max_new_tokens), tokenizer.smallest_limit(pairs=True))
    fitted = [fit_prompt(source, tokenizer, limit) for source in sources]
    prompts = [prompt for prompt, _ in fitted]
    generator, answers = TextGenerator(decoder, tokenizer), dict[int, Answer]()
    most = max_batch_tokens // config.num_beams  # each beam fills its own positions
    for batch in batches([len(prompt) for prompt in prompts], config.max_new_tokens, most):
        for row, found in zip(batch, generator.write_ids([prompts[row] for row in batch], config), strict=True):
            answers[row] = Answer(found.text, found.stopped, cut=fitted[row][1])
        if progress:
            progress(len(answers) / len(sources))
    return [answers[row] for row in range(len(sources))]
