"""What a prompt looks like, and where a row that is too long is cut: said here, and used wherever prompts are made.

A prompt is start ids, the template's part before `{src_txt}`, the source, and the part after it. The parts are encoded
one by one, so that no merge across a seam differs from one row to the next. A prompt that is too long loses the end of
its source; a row with a target loses its source first, then the target's end. What was too long in training is too long
afterwards: where sources were cut there, the tokenizer keeps the most that was left of one (`source_limit`).

A conversation is such rows one after the other: the template around a user's text, then the answer and end-of-text. So
every model with a template takes turns, and an answer ends as the model was trained to end it. A system message stands
before the first user's text, with a line end between. A conversation that is too long loses its earliest turns, and
keeps the system message. A model without a template continues text: there the texts are laid end to end, and the answer
is what follows; one that was also trained on questions and answers is asked as it was there (`for_conversations`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from ..config.base import shown
from .lookup import Counts

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

SOURCE_FIELD = "{src_txt}"
PAIR_TEMPLATE = "{src_txt}\n"
"""For rows with answers, where no other template is named: the line end is what tells a model to answer."""

SYSTEM = ("system", "developer")
TURNS_TEMPLATE = "问：{src_txt}\n答："
"""For conversations, where no other template is named: nothing else would part who speaks."""

ROLES = (*SYSTEM, "user", "assistant")
Cut = TypeVar("Cut", str, list[int])

NOTHING: tuple[Any, ...] = (None, "", [], {})
"""Values of a message's other keys that change nothing: OpenAI's client has such in an earlier answer."""


def split_template(template: str | None) -> tuple[str, str]:
    """The text before and after the source. Raises ValueError unless the source is there just once."""
    parts = (SOURCE_FIELD if template is None else template).split(SOURCE_FIELD)
    if len(parts) != 2:
        raise ValueError(f"prompt_template {template!r} must hold {SOURCE_FIELD} exactly once")
    return parts[0], parts[1]


def fill_template(template: str | None, source: str) -> str:
    """The text of a prompt; without a template the source alone."""
    before, after = split_template(template)
    return before + source + after


def prompt_limits(limit: int, free: Counts, overhead: int) -> Counts:
    """The most ids that each prompt may have where prompt and answer together have at most `limit`.

    Args:
        limit: Ids of a row, or the model's positions.
        free: Ids to keep free for each answer and its end-of-text. No more than three quarters of the limit are, so
            that a long answer doesn't take away all that it answers to.
        overhead: Ids of start and template; at least one id of the source stays beside them.
    """
    limits: Counts = np.maximum(limit - free, max(-(-limit // 4), overhead + 1))
    return limits


def prompt_limit(limit: int, free: int, overhead: int = 0) -> int:
    """`prompt_limits` of one prompt."""
    return int(prompt_limits(limit, np.array(free), overhead))


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
    """`check_messages`, with a system message as a part of the first user's text."""
    return with_system(check_messages(given))


def check_messages(given: Any) -> list[Message]:
    """A list of {"role": …, "content": …}, checked: user, assistant, user … in turns, after one system message at most.

    ValueError names the message that can't be done.
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
    if messages[0].role in SYSTEM and len(messages) == 1:
        raise ValueError("messages has a system message alone; a user's must follow")
    return messages


def with_system(messages: Sequence[Message]) -> list[Message]:
    """The same conversation, with the system message as a part of the first user's text."""
    if messages[0].role not in SYSTEM:
        return list(messages)
    return [Message("user", f"{messages[0].text}\n{messages[1].text}"), *messages[2:]]


def without_first_turn(messages: Sequence[Message]) -> list[Message]:
    """The same conversation without its earliest question and answer; a system message stays."""
    first = int(messages[0].role in SYSTEM)
    return [*messages[:first], *messages[first + 2 :]]


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
    return turns_of_ids(tokenizer.encode_batch(texts), tokenizer)


def turns_of_ids(texts: Sequence[list[int]], tokenizer: Tokenizer) -> list[Turn]:
    """The turns of a conversation whose texts, user's and assistant's in turn, have these ids."""
    users, answers = texts[::2], texts[1::2]
    before, after = tokenizer.prompt_parts
    prompts = [[*before, *tokenizer.as_trained(user), *after] for user in users]
    prompts[1:] = [prompt[len(tokenizer.start_ids) :] for prompt in prompts[1:]]
    ended = [[*answer, tokenizer.end_of_text_id] for answer in answers] + [[]] * (len(users) - len(answers))
    return [Turn(*turn) for turn in zip(prompts, ended, strict=True)]


def ids_of(turns: Sequence[Turn]) -> list[int]:
    """What the model sees of a conversation."""
    return [token for turn in turns for part in turn for token in part]


def fit_turns(messages: Sequence[Message], tokenizer: Tokenizer, limit: int) -> list[Turn]:
    """`encode_turns` of what fits into `limit` ids: the earliest turns go first, and the system message stays.

    Of a single turn that is too long the source loses its end, as a row's does (`cut_source`), and then the answer.
    """
    turns = encode_turns(with_system(messages), tokenizer)
    while len(turns) > 1 and (left := len(ids_of(turns))) > limit:
        for turn in turns[:-1]:  # the system message then stands before another turn, and all is encoded anew
            messages = without_first_turn(messages)
            if (left := left - len(turn.prompt) - len(turn.answer)) <= limit:
                break
        turns = encode_turns(with_system(messages), tokenizer)
    if len(ids_of(turns)) <= limit:
        return turns
    (prompt, answer), (before, after) = turns[0], tokenizer.prompt_parts
    if answer:
        kept = min(len(prompt), prompt_limit(limit, len(answer), len(before) + len(after)))
    else:  # ValueError where nothing of the question would be left
        kept = len(tokenizer.encode_prompt("".join(text for _, text in with_system(messages)), limit))
    told = len(tokenizer.encode(f"{messages[0].text}\n")) if messages[0].role in SYSTEM else 0
    source = prompt[len(before) : len(prompt) - len(after)]
    prompt = [*before, *cut_source(source, told, kept - len(before) - len(after)), *after]
    return [Turn(prompt, answer[: limit - len(prompt)])]


def cut_source(source: Cut, told: int, room: int) -> Cut:
    """So much of a source that is too long, in characters or ids: it loses its end; but where the system message at its
    beginning (`told`) is over half of the room, that is cut, too, so that as much is left of the question."""
    question = min(len(source) - told, max(room - told, room - room // 2))
    return source[: room - question] + source[told : told + question]


def fit_prompt(asked: str | Sequence[Message], tokenizer: Tokenizer, limit: int) -> tuple[list[int], bool]:
    """(the ids of a source, or of a conversation up to its last question; whether some are left out to be within
    `limit`). ValueError where nothing of the question would be left."""
    messages = [Message("user", asked)] if isinstance(asked, str) else asked
    whole = ids_of(encode_turns(with_system(messages), tokenizer))
    if len(whole) > limit:
        return ids_of(fit_turns(messages, tokenizer, limit)), True
    most, users = tokenizer.source_limit, [text for role, text in with_system(messages) if role == "user"]
    return whole, most is not None and any(len(ids) > most for ids in tokenizer.encode_batch(users))
