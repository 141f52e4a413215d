"""Preference rows in the layouts of TRL and LLaMA-Factory, and how checked rows hold them.

A checked row is that of a conversation which ends with the chosen answer, and has the other in a column of its own,
`rejected`. So whatever is done with conversations is done with the chosen answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from ...system.paths import expanded
from ...tokenizer.prompt_template import Message
from ..arrow import LEARNT
from ..conversations.alpaca_rows import HISTORY, INPUT, INSTRUCTION, turns, with_input
from ..conversations.message_rows import (
    Fault,
    as_columns,
    as_messages,
    conversations_of,
    is_nothing,
    read_messages_in,
)
from ..corpora.manifest import read_manifest
from ..quarantine import ABSENT, fault_of
from ..reading.pair_columns import REJECTED, answer_columns, prompt_column

MESSAGES_BEGIN = re.compile(r"\s*(\[\s*)?\{\s*\"(role|from|content|value)\"")
"""As a message, or a list of them, begins that stands in a file of texts, as JSON."""


def read_pairs(
    rows: Sequence[Mapping[str, object]], origin: Mapping[str, str]
) -> tuple[dict[str, list[str]], dict[int, Fault]]:
    """(columns of the checked rows, what is wrong with some of them).

    origin: as `check_pair_mapping` gives it.
    """
    talks, rejected, faults = list[list[Message]](), list[str](), dict[int, Fault]()
    for number, row in enumerate(rows):
        messages, other, fault = read_pair(row, origin)
        talks.append(messages)
        rejected.append(other)
        if fault:
            faults[number] = fault
    return as_columns(talks) | {REJECTED: rejected}, faults


def read_pair(row: Mapping[str, object], origin: Mapping[str, str]) -> tuple[list[Message], str, Fault | None]:
    """(the prompt and the chosen answer, the rejected one, None), or ([], "", what is wrong with the row)."""
    prompt = prompt_column(origin, row)
    sides: list[list[Message]] = []
    for name in answer_columns(origin, row):
        messages, fault = read_side(name, row.get(name, ABSENT), row, prompt)
        if fault:
            return [], "", fault
        sides.append(messages)
    chosen, rejected = sides
    fault = fault_of_sides(chosen, rejected)
    return ([], "", fault) if fault else (chosen, rejected[-1].text, None)


def fault_of_sides(chosen: Sequence[Message], rejected: Sequence[Message]) -> Fault | None:
    if chosen[:-1] != rejected[:-1]:
        return "has a chosen and a rejected answer to different prompts", ""
    if chosen[-1] == rejected[-1]:
        return "has the same text as chosen and as rejected, so nothing is preferred", ""
    return None


def read_side(
    name: str, answer: object, row: Mapping[str, object], prompt: str | None
) -> tuple[list[Message], Fault | None]:
    """The conversation that an answer ends: its own, or the prompt's messages and the answer."""
    given = messages_in(answer)
    if given is None:
        if fault := fault_of(answer):
            return [], (f"{name} {fault[0]}", fault[1])
        given = [{"role": "assistant", "content": answer}]
    asked = None if prompt is None else prompt_messages(prompt, row)
    if begins_with_answer(given):
        if prompt is None:
            return [], ("has no prompt", ": name its column with data.columns.YOUR_COLUMN=src_txt")
        if not isinstance(asked, list) and (wrong := fault_of(asked)):
            return [], (f"{prompt} {wrong[0]}", wrong[1])
        before = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
        return read_messages_in([*before, *given], row)
    whole, fault = read_messages_in(given, row)
    if fault:
        return [], (f"{name} {fault[0]}", fault[1])
    if whole[-1].role != "assistant":
        return [], (f"{name} ends with a user's message, not with an answer", "")
    if asked and not is_asked(whole, asked, row):
        return [], (f"{name} is a whole conversation, and not one that goes on from {prompt}", "")
    return whole, None


def messages_in(value: object) -> list[Any] | None:
    """The messages of a value that holds some, in OpenAI's words; None for a text, or anything else."""
    if isinstance(value, str) and MESSAGES_BEGIN.match(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, Mapping) and {"role", "from"} & value.keys() and not isinstance(value.get("role"), list):
        value = [value]
    read = as_messages(value)
    return read if isinstance(read, list) and read and all(isinstance(e, Mapping) for e in read) else None


def prompt_messages(column: str, row: Mapping[str, object]) -> object:
    """A prompt's messages; a text, or what is none, as it is. An instruction has its input and history beside it."""
    value = row.get(column, ABSENT)
    if (messages := messages_in(value)) is not None:
        return messages
    if column != INSTRUCTION:
        return value
    value = with_input(value, row.get(INPUT))
    if is_nothing(history := row.get(HISTORY)):
        return value
    whole = turns(history, value)
    return whole if isinstance(whole, list) else [whole]


def begins_with_answer(messages: Sequence[Any]) -> bool:
    return len(messages) == 1 and messages[0].get("role") == "assistant"


def is_asked(whole: Sequence[Message], asked: object, row: Mapping[str, object]) -> bool:
    """Whether a conversation answers what the prompt's column holds: all that was said before, or the last question."""
    if isinstance(asked, list):
        messages, fault = read_messages_in(asked, row)
        return not fault and messages in (list(whole), list(whole[:-1]))
    return asked is ABSENT or asked == whole[-2].text


def template_asked_with(path: str | None, usual: str | None) -> str | None:
    """The prompt template to which judged answers are answers, as the manifest of their folder says; of other rows the
    usual one. None: they go on with their prompts."""
    place = Path(expanded(path)) if path else None
    for folder in (place, place.parent) if place else ():
        asked = read_manifest(folder).get("asked")
        if isinstance(asked, dict) and "prompt_template" in asked:
            found: str | None = asked["prompt_template"]
            return found
    return usual


def as_plain_text(rows: datasets.Dataset) -> datasets.Dataset:
    """Prompt and chosen answer as one text, beside what is neither."""
    whole = ["".join(text for _, text in messages) for messages in conversations_of(rows)]
    beside = [name for name in rows.column_names if name not in LEARNT]
    return datasets.Dataset.from_dict({"src_txt": whole, **{name: rows[name] for name in beside}})
