"""The public sets of tasks other than verse, each read to rows of pairs before they are split.

summarization: Chinese parables and their morals, the parable-to-moral-match set of OpenAI's evals. Each line is a chat
prompt of a parable and five morals to choose from. The right moral is the target; the others stay in the row, so that
the choice itself can be scored too.
data_to_text: dialogue acts and the texts that people gave them, ConvLab's templates of CrossWOZ (Zhu et al. 2020,
TACL 8). A template is an utterance of the training dialogues whose values were replaced by the name of the intent that
they come from ("[Inform+酒店+价格]", numbered where the act has that intent more than once). The published SC-LSTM
scores are of such delexicalised texts, with all texts of one act as references.
question_generation: passage and answer → question, from a reading-comprehension set in the layout of SQuAD 1.1
(Rajpurkar et al. 2016), such as CMRC 2018 (Cui et al. 2019). The source is the passage around the answer, which stands
in 【】.
instructions: a thousand Chinese instructions with a language model's replies, LLaMA-Factory's alpaca_zh_demo. Its
README names Stanford Alpaca (zh) of ymcui/Chinese-LLaMA-Alpaca-3 as the origin of that set.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .packages import Package

HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TaskExample:
    """A pair to learn."""

    source: str
    target: str
    whole: str
    """What must not be divided between splits: examples of one text, or of near-copies of it, stay together."""
    columns: dict[str, Any] = field(default_factory=dict)
    """More columns of its row; the same for all examples of one source."""


@dataclass(frozen=True)
class Corpus:
    """Where a task's data come from and how they are read."""

    name: str
    licence: str
    read: Callable[[Sequence[bytes], Counter[str]], list[TaskExample]]
    """The members' contents → examples; counts what it leaves out and why. LookupError, TypeError or ValueError for
    another layout."""
    package: Package | None = None
    """None: a user's own copy, as archive="""
    members: tuple[str, ...] = ()
    prose: bool = True
    """Whether texts with much in common are versions of one another; dialogue acts are all of the same few parts."""
    layout: str = ""
    """Of a user's own copy, for messages."""


def is_text(value: object) -> bool:
    """Whether it can stand in a row: JSON may also hold half a surrogate pair, which no file takes."""
    return isinstance(value, str) and bool(value.strip()) and not HALF.search(value)


_FOLDER = "convlab/nlg/template/crosswoz"
_SIDES = {"用户": f"{_FOLDER}/auto_user_template_nlg.json", "系统": f"{_FOLDER}/auto_system_template_nlg.json"}
_PLACEHOLDER = re.compile(r"\[[^\[\]]+\]")
_VALUES = "Inform+", "Recommend+"
_FACILITY = "酒店设施"


def read_templates(contents: Sequence[bytes], counts: Counter[str]) -> list[TaskExample]:
    """Source: the side and its intents, numbered as their placeholders are. Left out: texts without an act, and those
    whose placeholders aren't the act's (a value that stood twice in the utterance, or inside of another)."""
    examples = []
    for side, content in zip(_SIDES, contents, strict=True):
        for act, texts in json.loads(content).items():
            counts["read"] += len(texts)
            distinct = list(dict.fromkeys(texts))
            counts["copies in an act"] += len(texts) - len(distinct)
            if not act:
                counts["without an act"] += len(distinct)
                continue
            intents = numbered(act.split("*"))
            slots = [f"[{intent}]" for intent in intents if has_value(intent)]
            source = f"{side}：{'；'.join(intents)}"
            whole = "*".join(sorted(set(act.split("*"))))
            for text in distinct:
                if not is_text(text) or sorted(set(_PLACEHOLDER.findall(text))) != sorted(slots):
                    counts["other placeholders"] += 1
                    continue
                examples.append(TaskExample(source, text.strip(), whole, {"side": side, "slots": slots}))
    return examples


def numbered(intents: list[str]) -> list[str]:
    """Intents that stand more than once get a number from 1 up."""
    return [
        f"{intent}{intents[: index + 1].count(intent)}" if intents.count(intent) > 1 else intent
        for index, intent in enumerate(intents)
    ]


def has_value(intent: str) -> bool:
    """Whether the texts of the act say a value of this intent, by the rule that the templates were made with."""
    return (intent.startswith(_VALUES) or _FACILITY in intent) and not intent.rstrip("0123456789").endswith("无")


DATA_TO_TEXT = Corpus(
    name="data_to_text",
    licence="Apache-2.0",
    package=Package(
        "convlab", "3.0.1", "911ee742a84885542db9404d82cb9162c37aa22e38f569ba6d8735aaf8677c2b", "setuptools.build_meta"
    ),
    members=tuple(_SIDES.values()),
    prose=False,
    read=read_templates,
)


def read_instructions(contents: Sequence[bytes], counts: Counter[str]) -> list[TaskExample]:
    examples = []
    for row in json.loads(contents[0]):
        counts["read"] += 1
        instruction, context, reply = (row[key] for key in ("instruction", "input", "output"))
        if not is_text(instruction) or not is_text(reply) or (context and not is_text(context)):
            counts["broken"] += 1
            continue
        source = f"{instruction.strip()}\n{context.strip()}" if context else instruction.strip()
        examples.append(TaskExample(source, reply.strip(), source))
    return examples


INSTRUCTIONS = Corpus(
    name="instructions",
    licence="Apache-2.0 (the package); the replies are a language model's, whose provider has terms of its own",
    package=Package(
        "llamafactory", "0.9.5", "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f", "hatchling.build"
    ),
    members=("data/alpaca_zh_demo.json",),
    read=read_instructions,
)

WINDOW = 200
"""Characters of the passage that are kept: with its question a row then fits the smallest model's 256 tokens."""

MARKS = str.maketrans("【】", "［］")
"""The passage's own brackets, which would pass for the answer's."""

_SENTENCE = re.compile(r"[^。！？!?\n]*[。！？!?\n]*")


def read_questions(contents: Sequence[bytes], counts: Counter[str]) -> list[TaskExample]:
    examples = []
    asked = [
        (paragraph["context"], question["question"], question["answers"])
        for document in json.loads(contents[0])["data"]
        for paragraph in document["paragraphs"]
        for question in paragraph["qas"]
    ]
    for passage, question, answers in asked:
        counts["read"] += 1
        span = answer_span(passage, answers, counts) if is_text(passage) and is_text(question) else None
        if span is None:
            counts["broken, or its answer isn't in the passage"] += 1
            continue
        start, end = window(passage, *span)
        counts["passage shortened"] += (start, end) != (0, len(passage))
        before, answer, after = passage[start : span[0]], passage[slice(*span)], passage[span[1] : end]
        source = f"{before.translate(MARKS)}【{answer.translate(MARKS)}】{after.translate(MARKS)}".strip()
        examples.append(TaskExample(source, question.strip(), passage))
    return examples


def answer_span(passage: str, answers: list[dict[str, Any]], counts: Counter[str]) -> tuple[int, int] | None:
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

_PROMPT = re.compile(
    r"(?P<parable>.*)\nWhich moral is this story attempting to convey\?[^\n]*\n"
    r"A\) (?P<choices>.*)\nThe output should look like .*",
    re.DOTALL,
)

_NEXT_CHOICE = re.compile(r" [B-E]\) ")
_ANSWER = re.compile(r"The final answer is: ([A-E])")


def read_parables(contents: Sequence[bytes], counts: Counter[str]) -> list[TaskExample]:
    examples = []
    for line in filter(str.strip, contents[0].decode().splitlines()):
        row = json.loads(line)
        counts["read"] += 1
        prompt = _PROMPT.fullmatch(row["input"][-1]["content"])
        answer = _ANSWER.fullmatch(row["ideal"][0])
        choices = [choice.strip() for choice in _NEXT_CHOICE.split(prompt["choices"])] if prompt else []
        if not prompt or not answer or len(choices) != 5 or not all(map(is_text, [prompt["parable"], *choices])):
            counts["broken"] += 1
            continue
        parable, right = prompt["parable"].strip(), "ABCDE".index(answer[1])
        examples.append(TaskExample(parable, choices[right], parable, {"choices": choices, "answer": right}))
    return examples


SUMMARIZATION = Corpus(
    name="summarization",
    licence="MIT",
    package=Package("evals", "3.0.1.post1", "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78"),
    members=("evals/registry/data/parable-to-moral-match/parable-to-moral-match-zh.jsonl",),
    read=read_parables,
)

CORPORA = {corpus.name: corpus for corpus in (SUMMARIZATION, DATA_TO_TEXT, QUESTION_GENERATION, INSTRUCTIONS)}
"""What `prepare source=NAME` can be told, beside sample, full and rows of one's own."""
