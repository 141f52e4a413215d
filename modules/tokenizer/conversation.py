"""How a conversation becomes a prompt: one rule, for whoever serves one or trains on it.

A turn is what a row of src_txt and tgt_txt is: the template around the user's text, then the answer and end-of-text. So
every model with a template takes turns, and an answer ends as the model was trained to end it. A system message stands
before the first user's text, with a line end between. A model without a template continues text: there the texts are
laid end to end, and the answer is what follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..config.base import shown
from .tokenizer import Tokenizer

SYSTEM = ("system", "developer")
ROLES = (*SYSTEM, "user", "assistant")
NOTHING: tuple[Any, ...] = (None, "", [], {})
"""Values of a message's other keys that change nothing: OpenAI's client has such in an earlier answer."""


class Message(NamedTuple):
    role: str
    text: str


class Turn(NamedTuple):
    """The ids of a user's text and of its answer."""

    prompt: list[int]
    """With the template; in the first turn with start ids, too."""
    answer: list[int]
    """With end-of-text; nothing where it is still to be written."""


def read_messages(given: Any) -> list[Message]:
    """A list of {"role": …, "content": …}, checked: user, assistant, user … in turns.

    A system message comes back as a part of the first user's text. ValueError names the message that can't be done.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Sequence) or not given:
        raise ValueError(f"messages must be a list of {{'role': …, 'content': …}}, not {shown(given)}")
    messages = [read_message(f"messages {number}", message) for number, message in enumerate(given)]
    before = None
    for number, (role, _) in enumerate(messages):
        if role not in followers(before):
            place = f"comes after {before}" if before else "comes first"
            raise ValueError(
                f"messages {number} has the role {role} and {place}, where {' or '.join(followers(before))} is wanted: "
                "user and assistant take turns, after one system message at most"
            )
        before = role
    if messages[0].role in SYSTEM:
        if len(messages) == 1:
            raise ValueError("messages has a system message alone; a user's must follow")
        messages[:2] = [Message("user", f"{messages[0].text}\n{messages[1].text}")]
    return messages


def followers(role: str | None) -> tuple[str, ...]:
    """The roles that may come next; None: that may come first."""
    if role is None:
        return ("user", *SYSTEM)
    return ("assistant",) if role == "user" else ("user",)


def read_message(where: str, message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must be {{'role': …, 'content': …}}, not {shown(message)}")
    if (role := message.get("role")) not in ROLES:
        raise ValueError(f"{where} has the role {shown(role)}; there is {', '.join(ROLES)}")
    for key, value in message.items():
        if key not in ("role", "content") and value not in NOTHING:
            raise ValueError(f"{where} has {shown(key)}, which isn't done here: there is role and content")
    return Message(role, "".join(texts_in(where, message.get("content"))))


def texts_in(where: str, content: Any) -> Iterator[str]:
    """The content, or the texts of its parts."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if isinstance(parts, bytes) or not isinstance(parts, Sequence):
        raise ValueError(
            f"{where} content must be a text or a list of {{'type': 'text', 'text': …}}, not {shown(parts)}"
        )
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise ValueError(f"{where} content has a part of the type {shown(kind)}; there is 'text' alone")
        if not isinstance(text := part.get("text"), str):
            raise ValueError(f"{where} content has a part whose text is {shown(text)}")
        yield text


def encode_turns(messages: Sequence[Message], tokenizer: Tokenizer) -> list[Turn]:
    """The turns of a checked conversation. End to end, they are what the model sees."""
    texts = [message.text for message in messages]
    if tokenizer.prompt_template is None:
        return [Turn(tokenizer.encode_prompt("".join(texts)), [])]
    users, answers = ([tokenizer.encode(text) for text in texts[first::2]] for first in (0, 1))
    before, after = tokenizer.prompt_parts
    prompts = [[*before, *user, *after] for user in users]
    prompts[1:] = [prompt[len(tokenizer.start_ids) :] for prompt in prompts[1:]]
    ended = [[*answer, tokenizer.end_of_text_id] for answer in answers] + [[]] * (len(users) - len(answers))
    return [Turn(*turn) for turn in zip(prompts, ended, strict=True)]
