"""A thousand Chinese instructions with a language model's replies: LLaMA-Factory's alpaca_zh_demo.

Its README names Stanford Alpaca (zh) of ymcui/Chinese-LLaMA-Alpaca-3 as the origin of that set.
"""

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
        if not is_text(instruction) or not is_text(reply) or (context and not is_text(context)):
            counts["broken"] += 1
            continue
        source = f"{instruction.strip()}\n{context.strip()}" if context else instruction.strip()
        examples.append(Example(source, reply.strip(), source))
    return examples


INSTRUCTIONS = Corpus(
    name="instructions",
    licence="Apache-2.0 (the package); the replies are a language model's, whose provider has terms of its own",
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
