"""What user and assistant say in turns, in the ways that it is written down, and how checked rows hold it.

A checked row of a conversation has its last turn as src_txt and tgt_txt, and all of it in `messages`, as JSON: so
whatever is done with pairs is done with the last answer, and the whole is there for prompts and for training.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...tokenizer.lost_text import kept_sign, lost_separator
from ...tokenizer.prompt_template import (
    PAIR_TEMPLATE,
    SOURCE_FIELD,
    SYSTEM,
    TURNS_TEMPLATE,
    Message,
    check_messages,
    with_system,
)
from ..arrow import text_batches
from ..quarantine import ABSENT, beginning, fault_of
from ..reading.column_names import MESSAGES

if TYPE_CHECKING:
    import datasets

    from ...tokenizer.tokenizer import Tokenizer

ROLES_ELSEWHERE = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of roles, as LLaVA's and FastChat's data have them too."""

SYSTEM_COLUMN, TOOLS_COLUMN = BESIDE = "system", "tools"
"""Columns beside conversations that belong to their prompts, as LLaMA-Factory's data have them."""

PLACE = re.compile(r"messages (\d+) ")

WANTED = '; [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …] is wanted'

SHOWN_BY_PYTHON = re.compile(r"\s*\[\s*\{\s*'")
"""How a list of messages begins that pandas has put into a CSV file."""

Fault = tuple[str, str]
"""As `fault_of` gives it."""


@dataclass(frozen=True)
class Conversation:
    """What stands in a row in place of a text to answer."""

    given: object
    beside: Mapping[str, object] = field(default_factory=dict)
    """The row that it stands in, of which BESIDE is read."""

    @functools.cached_property
    def question(self) -> tuple[list[Message], Fault | None]:
        """(messages up to the last of the user's, None), ([], what is wrong) where they are none."""
        messages, fault = read_messages_in(self.given, self.beside)
        return (messages[:-1] if messages and messages[-1].role == "assistant" else messages), fault

    @property
    def in_lines(self) -> str:
        """To read: who says what."""
        return "\n".join(f"{role}: {text}" for role, text in self.question[0])

    def __str__(self) -> str:
        messages, _ = self.question
        return "".join(text for _, text in with_system(messages)) if messages else ""


def read_conversation(value: object, beside: Mapping[str, object]) -> tuple[list[Message], Fault | None]:
    """(messages, None) of a conversation that can be learnt from, ([], what is wrong with it) of any other.

    beside: its row, of which BESIDE is read.
    """
    messages, fault = read_messages_in(value, beside)
    if fault or messages[-1].role == "assistant":
        return messages, fault
    if not any(role == "assistant" for role, _ in messages):
        return [], ("has no assistant's message, and so nothing to learn", "")
    return [], ("ends with a user's message, which no answer follows", "")


def read_messages_in(value: object, beside: Mapping[str, object]) -> tuple[list[Message], Fault | None]:
    """(messages, None) of a value that holds a conversation, ([], what is wrong with it) of any other."""
    if isinstance(value, str) or value is ABSENT:
        if fault := fault_of(value):
            return [], fault
        try:
            value = json.loads(str(value))
        except (ValueError, RecursionError):
            if SHOWN_BY_PYTHON.match(str(value)):
                return [], ("is a list as Python shows it, not JSON", "; write a .jsonl file, or json.dumps(…) of each")
            return [], ("is text that isn't JSON", WANTED)
    if not isinstance(value := as_messages(value), list):
        return [], ("isn't a list of messages", f" ({beginning(value)[:40]}){WANTED}")
    try:
        messages = check_messages(value)
    except (ValueError, RecursionError) as error:
        return [], parted(str(error))
    for number, (_, text) in enumerate(messages, 1):
        if fault := fault_of(text):
            return [], (f"has a message that {fault[0]}", f"{fault[1]} (number {number})")
    return with_columns(messages, beside)


def with_columns(messages: list[Message], beside: Mapping[str, object]) -> tuple[list[Message], Fault | None]:
    """The conversation with the system message that stands in a column of its own."""
    if not is_nothing(tools := beside.get(TOOLS_COLUMN)):
        fault = f"has a column {TOOLS_COLUMN!r} beside it, and tools aren't done here"
        return [], (fault, f" ({beginning(tools)[:40]})")
    if is_nothing(told := beside.get(SYSTEM_COLUMN)):
        return messages, None
    if not isinstance(told, str):
        return [], (f"has a column {SYSTEM_COLUMN!r} beside it that isn't text", f" ({beginning(told)[:40]})")
    if wrong := fault_of(told):
        return [], (f"has a column {SYSTEM_COLUMN!r} beside it that {wrong[0]}", wrong[1])
    if messages[0].role not in SYSTEM:
        return [Message("system", told), *messages], None
    if messages[0].text == told:
        return messages, None
    return [], (f"has a system message, and another in the column {SYSTEM_COLUMN!r}; keep one", "")


def is_nothing(value: object) -> bool:
    """Whether a column beside a conversation is empty in its row."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    if value is None or value is ABSENT or isinstance(value, float):  # NaN, as pandas writes what is missing
        return value is None or value is ABSENT or value != value
    return hasattr(value, "__len__") and len(value) == 0


def as_messages(value: object) -> object:
    """The same, in OpenAI's words: ShareGPT's from and value, or a column for each key, as datasets may have it."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping) and value and all(isinstance(column, Sequence) for column in value.values()):
        columns = {key: column for key, column in value.items() if not isinstance(column, str | bytes)}
        if len(columns) == len(value) and len(set(map(len, columns.values()))) == 1:
            value = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return list(map(as_message, value)) if isinstance(value, list | tuple) else value


def as_message(message: object) -> object:
    if not isinstance(message, Mapping):
        return message
    message = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in message.items()}
    if message.get("role") or "from" not in message:
        return message
    text, role = "content" if message.get("content") else "value", message["from"]
    others = {key: value for key, value in message.items() if key not in ("role", "from", text)}
    role = ROLES_ELSEWHERE.get(role, role) if isinstance(role, str) else role
    return {**others, "role": role, "content": message.get(text)}


def parted(reason: str) -> Fault:
    """What `check_messages` says in two: what is wrong, and with which message, which differs from row to row."""
    place = PLACE.match(reason)
    if not place:
        return f"can't be used: {reason}", ""
    return f"can't be used: a message {reason[place.end() :]}", f" (number {int(place[1]) + 1})"


def as_columns(conversations: Sequence[list[Message]]) -> dict[str, list[str]]:
    """What a checked row holds of each of them; empty texts of one that is empty."""
    sources, targets, whole = [], [], []
    for messages in conversations:
        source, target = with_system(messages)[-2:] if messages else (Message("", ""), Message("", ""))
        sources.append(source.text)
        targets.append(target.text)
        whole.append(json.dumps(as_json(messages), ensure_ascii=False))
    return {"src_txt": sources, "tgt_txt": targets, MESSAGES: whole}


def as_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": "system" if role in SYSTEM else role, "content": text} for role, text in messages]


def stored_messages(text: str) -> list[Message]:
    """What a checked row holds; the system message is a message of its own."""
    return [Message(message["role"], message["content"]) for message in json.loads(text)]


def conversations_of(rows: datasets.Dataset) -> Iterator[list[Message]]:
    """Each row as a conversation; a pair is one of a single turn."""
    for batch in text_batches(rows):
        yield from conversations_in(batch)


def conversations_in(batch: Mapping[str, list[Any]]) -> Iterator[list[Message]]:
    if MESSAGES in batch:
        yield from map(stored_messages, batch[MESSAGES])
    elif "tgt_txt" in batch:
        for source, target in zip(batch["src_txt"], batch["tgt_txt"], strict=True):
            yield [Message("user", source), Message("assistant", target)]
    else:
        yield from ([Message("user", source)] for source in batch["src_txt"])


def questions_of(rows: datasets.Dataset) -> list[str | list[Message]]:
    """What is asked before a row's answer: src_txt, or a conversation up to its last question."""
    if MESSAGES not in rows.column_names:
        return list(rows["src_txt"])
    return [stored_messages(text)[:-1] for text in rows[MESSAGES]]


def last_turns(rows: datasets.Dataset) -> datasets.Dataset:
    """Conversations as pairs, of their last question and answer."""
    return rows.remove_columns([name for name in rows.column_names if name == MESSAGES])


def learnt_texts(rows: datasets.Dataset) -> list[str]:
    """The texts that training on the rows teaches to write."""
    if MESSAGES not in rows.column_names:
        return list(rows["tgt_txt" if "tgt_txt" in rows.column_names else "src_txt"])
    return [text for messages in map(stored_messages, rows[MESSAGES]) for role, text in messages if role == "assistant"]


def texts_of_rows(batch: Mapping[str, list[Any]]) -> Iterator[list[str]]:
    """All texts of each row."""
    for messages in conversations_in(batch):
        yield [text for _, text in messages]


def users_texts(batch: Mapping[str, list[Any]]) -> list[str]:
    """What is asked, of each row: without a system message, which many conversations share, and without answers."""
    if MESSAGES not in batch:
        return batch["src_txt"]
    return ["\n".join(text for role, text in messages if role == "user") for messages in conversations_in(batch)]


def answers_texts(batch: Mapping[str, list[Any]]) -> list[str]:
    """What is answered, of each row: all that the assistant says."""
    if MESSAGES not in batch:
        return batch["tgt_txt"]
    return ["\n".join(text for role, text in messages if role == "assistant") for messages in conversations_in(batch)]


def default_template(rows: datasets.Dataset, tokenizer: Tokenizer) -> str:
    """Of rows with answers, where no other template is named.

    A sign parts answer and source: after a whole text a model that continues texts has learnt to end.
    """
    if MESSAGES in rows.column_names:
        return TURNS_TEMPLATE
    return PAIR_TEMPLATE if not lost_separator(PAIR_TEMPLATE, tokenizer) else SOURCE_FIELD + kept_sign(tokenizer)
