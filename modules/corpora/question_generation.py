"""Passage and answer → question, from a reading-comprehension set in the layout of SQuAD 1.1 (Rajpurkar et al. 2016).

The source is the passage around the answer, which stands in 【】. CMRC 2018 (Cui et al. 2019) has this layout.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from .corpus import Corpus, Example, is_text

WINDOW = 200
"""Characters of the passage that are kept: with its question a row then fits the smallest model's 256 tokens."""
MARKS = str.maketrans("【】", "［］")
"""The passage's own brackets, which would pass for the answer's."""
_SENTENCE = re.compile(r"[^。！？!?\n]*[。！？!?\n]*")


def read_questions(contents: Sequence[bytes], counts: Counter[str]) -> list[Example]:
    examples = []
    for passage, question, answers in _questions(json.loads(contents[0])):
        counts["read"] += 1
        span = place_of(passage, answers, counts) if is_text(passage) and is_text(question) else None
        if span is None:
            counts["broken, or its answer isn't in the passage"] += 1
            continue
        start, end = window(passage, *span)
        counts["passage shortened"] += (start, end) != (0, len(passage))
        before, answer, after = passage[start : span[0]], passage[slice(*span)], passage[span[1] : end]
        source = f"{before.translate(MARKS)}【{answer.translate(MARKS)}】{after.translate(MARKS)}".strip()
        examples.append(Example(source, question.strip(), passage))
    return examples


def _questions(content: dict[str, Any]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    for document in content["data"]:
        for paragraph in document["paragraphs"]:
            for question in paragraph["qas"]:
                yield paragraph["context"], question["question"], question["answers"]


def place_of(passage: str, answers: list[dict[str, Any]], counts: Counter[str]) -> tuple[int, int] | None:
    """Start and end of the answer that most annotators gave, the first of equals; None where it isn't to be found.

    An answer that isn't where its offset says is taken from the only place where it is.
    """
    given = Counter((answer["text"].strip(), int(answer["answer_start"])) for answer in answers if answer["text"])
    for (text, start), _ in given.most_common():
        for shift in (0, 1) if text else ():  # an offset may be that of the blank before
            if start >= 0 and passage.startswith(text, start + shift):
                return start + shift, start + shift + len(text)
        if text and passage.count(text) == 1:
            counts["answer's offset mended"] += 1
            return passage.index(text), passage.index(text) + len(text)
    return None


def window(passage: str, start: int, end: int, size: int = WINDOW) -> tuple[int, int]:
    """Where to cut the passage: the answer's sentences, then as many around them as fit, the one before first.

    Where the answer's own sentences are too long, `size` characters with the answer in their middle; an answer that is
    longer itself stays whole.
    """
    bounds = [match.span() for match in _SENTENCE.finditer(passage) if match.group()]
    inside = [index for index, (left, right) in enumerate(bounds) if left < end and right > start]
    first, last = inside[0], inside[-1]
    if bounds[last][1] - bounds[first][0] > size:
        left = max(0, min(start - (size - (end - start)) // 2, len(passage) - size))
        return min(left, start), max(min(left + size, len(passage)), end)
    grown = True
    while grown:
        grown = False
        if first > 0 and bounds[last][1] - bounds[first - 1][0] <= size:
            first, grown = first - 1, True
        if last + 1 < len(bounds) and bounds[last + 1][1] - bounds[first][0] <= size:
            last, grown = last + 1, True
    return bounds[first][0], bounds[last][1]


QUESTION_GENERATION = Corpus(
    name="question_generation",
    licence="your copy's own (CMRC 2018: CC BY-SA 4.0)",
    layout="SQuAD's layout (data, paragraphs, context, qas), .json or .json.gz, e.g. cmrc2018_dev.json.gz",
    read=read_questions,
)
