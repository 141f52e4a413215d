"""Multiple choice by likelihood, as in the GPT-3 paper (Brown et al. 2020, section 2.4): nothing is generated.

The choice that the model finds likeliest after the prompt is its answer: by the sum of its tokens' log-probabilities,
or by that sum divided by the choice's characters, so that long choices aren't at a disadvantage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import datasets
import numpy as np

from ..decoder import Decoder
from ..encoding import Documents
from ..evaluation import score_documents
from ..measures import Measure, mean
from ..tokenizer import Tokenizer
from .rows import read_choices

ROWS = 512
"""Whose choices are laid out at once: memory stays flat however many rows there are."""


def choice_accuracy(
    decoder: Decoder,
    tokenizer: Tokenizer,
    rows: datasets.Dataset,
    max_batch_tokens: int = 8192,
    progress: Callable[[float], None] | None = None,
) -> tuple[list[Measure], int]:
    """(choice_accuracy and choice_accuracy_per_char, rows whose source was cut). DataError as of read_choices."""
    questions = read_choices(rows)
    limit = decoder.config.max_position_embeddings
    right: list[tuple[bool, bool]] = []
    cut = 0
    for start in range(0, len(questions), ROWS):
        some = questions[start : start + ROWS]
        sources = rows["src_txt"][start : start + ROWS]
        encoded = [
            encode_question(source, choices, tokenizer, limit)
            for source, (choices, _) in zip(sources, some, strict=True)
        ]
        cut += sum(shortened for _, _, shortened in encoded)
        losses = iter(score_documents(decoder, lay_out(encoded), max_batch_tokens))
        for choices, answer in some:
            found = np.array([next(losses) for _ in choices])
            lengths = np.array([len(choice) for choice in choices])
            right.append((found.argmin() == answer, (found / lengths).argmin() == answer))
        if progress:
            progress(len(right) / len(questions))
    names = ("choice_accuracy", "choice_accuracy_per_char")
    return [mean(name, np.array(right, float)[:, index]) for index, name in enumerate(names)], cut


def chance(rows: datasets.Dataset) -> list[Measure]:
    """What guessing gives."""
    expected = [1 / len(choices) for choices, _ in read_choices(rows)]
    return [mean(name, expected) for name in ("choice_accuracy", "choice_accuracy_per_char")]


Question = tuple[list[int], list[list[int]], bool]
"""(ids of the prompt, ids of each choice, whether the source was cut)"""


def encode_question(source: str, choices: list[str], tokenizer: Tokenizer, limit: int) -> Question:
    """Where the longest choice doesn't fit, the source loses its end, the same for all choices."""
    ids = tokenizer.encode_batch(choices)
    room = limit + 1 - max(map(len, ids))
    prompt = tokenizer.encode_prompt(source, room)
    return prompt, ids, len(prompt) == room and len(tokenizer.encode_prompt(source)) > room


def lay_out(questions: Sequence[Question]) -> Documents:
    """A document a choice: the prompt, then the choice, without an end; what is scored is the choice alone."""
    documents = [(prompt, choice) for prompt, choices, _ in questions for choice in choices]
    prompts = np.array([len(prompt) for prompt, _ in documents], np.int32)
    lengths = prompts + np.array([len(choice) for _, choice in documents])
    return Documents(
        ids=np.array([token for pair in documents for part in pair for token in part], np.int32),
        offsets=np.concatenate([[0], lengths.cumsum()]),
        prompt_lengths=prompts,
        characters=np.zeros(len(documents), np.int32),
        ended=np.zeros(len(documents), bool),
        rows=len(documents),
        rows_cut=0,
        rows_split=0,
    )
