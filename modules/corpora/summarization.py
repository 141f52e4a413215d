"""Chinese parables and their morals: the parable-to-moral-match set of OpenAI's evals.

Each line is a chat prompt of a parable and five morals to choose from. The right moral is the target; the others stay
in the row, so that the choice itself can be scored too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from .corpus import Corpus, Example, is_text, json_lines
from .packages import Package

_PROMPT = re.compile(
    r"(?P<parable>.*)\nWhich moral is this story attempting to convey\?[^\n]*\n"
    r"A\) (?P<choices>.*)\nThe output should look like .*",
    re.DOTALL,
)
_NEXT_CHOICE = re.compile(r" [B-E]\) ")
_ANSWER = re.compile(r"The final answer is: ([A-E])")


def read_parables(contents: Sequence[bytes], counts: Counter[str]) -> list[Example]:
    examples = []
    for row in json_lines(contents[0]):
        counts["read"] += 1
        prompt = _PROMPT.fullmatch(row["input"][-1]["content"])
        answer = _ANSWER.fullmatch(row["ideal"][0])
        choices = [choice.strip() for choice in _NEXT_CHOICE.split(prompt["choices"])] if prompt else []
        if not prompt or not answer or len(choices) != 5 or not all(map(is_text, [prompt["parable"], *choices])):
            counts["broken"] += 1
            continue
        parable, right = prompt["parable"].strip(), "ABCDE".index(answer[1])
        examples.append(Example(parable, choices[right], parable, {"choices": choices, "answer": right}))
    return examples


SUMMARIZATION = Corpus(
    name="summarization",
    licence="MIT",
    package=Package(
        "evals",
        "3.0.1.post1",
        "evals-3.0.1.post1-py3-none-any.whl",
        "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        "MIT",
    ),
    members=("evals/registry/data/parable-to-moral-match/parable-to-moral-match-zh.jsonl",),
    read=read_parables,
)
