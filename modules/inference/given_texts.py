"""What a caller gives a model to continue or to answer: a text, a dict that holds one, or a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ..config.base import shown
from ..tokenizer.prompt_template import Message, encode_turns, ids_of, read_messages
from ..tokenizer.tokenizer import Tokenizer

TEXT_KEYS = ("text", "src_txt")
"""Where a dict holds its text."""

MESSAGES = "messages"
"""Where a dict holds a conversation."""

Given: TypeAlias = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]
Asked: TypeAlias = str | list[Message]


def is_one(given: Any) -> bool:
    """Whether something is one text or conversation, and not a list of them."""
    return isinstance(given, str | Mapping) or is_conversation(given)


def is_conversation(given: Any) -> bool:
    """Whether something is a list of messages, as a caller has them or read already."""
    first = given[0] if isinstance(given, list) and given else None
    return isinstance(first, Message) or (isinstance(first, Mapping) and "role" in first)


def texts_of(given: Any) -> list[Asked]:
    """What to continue or answer, of a list of such. ValueError for what is none."""
    # To go through a mapping or a table gives the names of its columns.
    if is_one(given) or isinstance(given, bytes) or hasattr(given, "columns") or not isinstance(given, Iterable):
        raise ValueError(f"a list of texts is wanted (of a table one of its columns), not {shown(given)}")
    return [text_in(f"text {row}", value) for row, value in enumerate(given)]


def text_in(where: str, value: Any) -> Asked:
    """A text as it is, or what stands in a dict under one of TEXT_KEYS; the answer of a row may stand beside it.

    Of a conversation, or a dict that holds one, its messages up to the user's that is to be answered.
    """
    if is_conversation(value):
        return question_in(where, value)
    if isinstance(value, Mapping):
        named = [key for key in value if key != "tgt_txt"]
        if named == [MESSAGES]:
            return question_in(where, value[MESSAGES])
        if len(named) != 1 or named[0] not in TEXT_KEYS:
            wanted = " or ".join(f'{{"{key}": …}}' for key in (*TEXT_KEYS, MESSAGES))
            raise ValueError(
                f"{where} is a dict with {', '.join(map(str, value)) or 'nothing'}: give the text itself or {wanted}; "
                "generation parameters are arguments beside it, e.g. max_new_tokens=64"
            )
        value = value[named[0]]
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a text, not {shown(value)}")
    return value


def question_in(where: str, given: Any) -> list[Message]:
    """As the server's chat reads it."""
    if isinstance(given, list) and given and isinstance(given[0], Message):
        return given
    try:
        messages = read_messages(given.tolist() if hasattr(given, "tolist") else given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if messages[-1].role != "user":
        raise ValueError(f"{where}: messages end with the assistant's; the last must be a user's, which is answered")
    return messages


def encode_asked(asked: Asked, tokenizer: Tokenizer) -> list[int]:
    """The ids of a prompt."""
    if isinstance(asked, str):
        return tokenizer.encode_prompt(asked)
    return ids_of(encode_turns(asked, tokenizer.for_conversations))


def as_text(asked: Asked) -> str:
    """All that is said."""
    return asked if isinstance(asked, str) else "".join(message.text for message in asked)
