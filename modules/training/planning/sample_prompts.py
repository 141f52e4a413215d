"""What is continued at each validation where the configuration names no prompts: some of the validation rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import datasets

from ...config.generation import GenerationConfig
from ...data.mixing.source_splits import split_name
from ...inference.text_generator import require_room
from ...tokenizer.tokenizer import Tokenizer

PROMPTS, ROWS_TRIED = 3, 50
OPENING = re.compile(r".{0,15}?[，。！？；：、,.!?;:\n]|.{1,8}", re.DOTALL)
"""The first clause of a text, or a few characters of one without a sign."""


def usual_prompts(
    splits: Mapping[str, datasets.Dataset],
    tokenizers: Mapping[str, Tokenizer],
    saved: Tokenizer,
    positions: int,
    generation: GenerationConfig,
) -> list[str]:
    """Sources of rows with answers; of plain text how it begins. Of a mixture it is the first source that is asked as
    the model is by whoever names no task. A row that leaves room neither for max_new_tokens nor half of the
    model's positions, or can't keep the form of verse that texts are to have, is passed over."""
    asked_alike = (name for name, each in tokenizers.items() if each.prompt_template == saved.prompt_template)
    source = next(asked_alike, next(iter(tokenizers)))
    most = max(positions // 2, positions - generation.max_new_tokens)
    found: dict[str, None] = {}
    for prompt in openings(splits[split_name("validation", source)]):
        try:
            require_room("", [prompt], saved, most, generation)
        except ValueError:
            continue
        found[prompt] = None
        if len(found) == PROMPTS:
            break
    return list(found)


def openings(rows: datasets.Dataset) -> Iterator[str]:
    for row in rows.select(range(min(len(rows), ROWS_TRIED))):
        text = row["src_txt"]
        if "tgt_txt" in row:
            yield text
        elif begun := OPENING.match(text.lstrip()):
            yield begun[0]
