"""A thousand Chinese instructions with replies by GPT-4: LLaMA-Factory's alpaca_zh_demo."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from .corpus import Corpus, Example, is_text
from .packages import Package


def read_instructions(contents: Sequence[bytes], counts: Counter[str]) -> list[Example]:
    examples = []
    for row in json.loads(contents[0]):
        counts["read"] += 1
        instruction, context, reply = (row[key] for key in ("instruction", "input", "output"))
        if not is_text(instruction) or not is_text(reply):
            counts["broken"] += 1
            continue
        source = f"{instruction.strip()}\n{context.strip()}" if is_text(context) else instruction.strip()
        examples.append(Example(source, reply.strip(), source))
    return examples


INSTRUCTIONS = Corpus(
    name="instructions",
    # The package says Apache-2.0 of all its files; where the replies were first published they aren't for trade.
    licence="Apache-2.0 (package); the replies come from the Alpaca-GPT4 set, published as CC BY-NC 4.0",
    package=Package(
        "llamafactory",
        "0.9.5",
        "llamafactory-0.9.5.tar.gz",
        "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
        "Apache-2.0",
        backend="hatchling.build",
    ),
    members=("data/alpaca_zh_demo.json",),
    read=read_instructions,
)
