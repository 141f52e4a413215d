"""Rows answered a window at a time: batches of rows of like length, each row's text as if it were alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...config.prediction import MAX_BATCH_TOKENS
from ...tokenizer.prompt_template import with_system
from ..given_texts import encode_asked, is_conversation

if TYPE_CHECKING:
    from ...config.generation import GenerationConfig
    from ..text_generator import TextGenerator

WINDOW_ROWS = 2048
"""Rows that are held at once, and sorted by length."""

WINDOW_CHARACTERS = 4_000_000
"""Of the rows of a window: a thousand of them may be a megabyte or a gigabyte."""

T = TypeVar("T")


@dataclass(frozen=True)
class RowAnswer:
    """What became of a row."""

    text: str | None = None
    """What was generated, without the prompt; None where the row can't be answered."""
    tokens: int = 0
    stopped: bool | None = None
    """Whether it ended by itself, and not for want of tokens or positions."""
    error: str | None = None
    """Why the row has no answer."""


def batches(lengths: Sequence[int], new_tokens: int, max_batch_tokens: int) -> Iterator[list[int]]:
    """Row numbers, longest prompts first, so that a batch that is too much for memory is the first one.

    A batch fills at most max_batch_tokens positions, or is one row.
    """
    batch: list[int] = []
    for row in np.argsort(-np.array(lengths, np.int64), kind="stable").tolist():
        if batch and (len(batch) + 1) * (lengths[batch[0]] + new_tokens) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def windows(rows: Iterable[T]) -> Iterator[list[T]]:
    """The rows in order, as many at once as may be held; no more of them are asked for before these are done with."""
    from ...data.rows import size_of  # datasets, which a generator of texts has no need of

    window: list[T] = []
    characters = 0
    for row in rows:
        window.append(row)
        characters += size_of(row)
        if len(window) >= WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def answer_window(
    generator: TextGenerator,
    texts: Sequence[object],
    config: GenerationConfig,
    max_batch_tokens: int,
    name: str = "the text",
    done: Collection[int] = (),
) -> Iterator[dict[int, RowAnswer]]:
    """Row number → answer, as they come: first those without one, then batch by batch.

    Batches are the same whichever rows are `done` already, so that the others are computed as they would have been.
    """
    prompts: dict[int, list[int]] = {}
    refused: dict[int, RowAnswer] = {}
    for row, text in enumerate(texts):
        ids, error = prompt_of(generator, text, name, config)
        if error:
            refused[row] = RowAnswer(error=error)
        else:
            prompts[row] = ids
    if left := {row: answer for row, answer in refused.items() if row not in done}:
        yield left
    rows = list(prompts)
    new_tokens = min(config.max_new_tokens, generator.decoder.config.max_position_embeddings)
    most = max_batch_tokens // config.num_beams  # each beam fills its own positions
    for batch in batches([len(prompts[row]) for row in rows], new_tokens, most):
        asked = [rows[index] for index in batch if rows[index] not in done]
        if asked:
            found = generator.write_ids([prompts[row] for row in asked], config)
            yield {row: RowAnswer(one.text, one.tokens, one.stopped) for row, one in zip(asked, found, strict=True)}


def prompt_of(generator: TextGenerator, text: object, name: str, config: GenerationConfig) -> tuple[list[int], str]:
    """(ids, "") of a text that can be answered, ([], why not) of any other. config: for what the text is held to."""
    from ...data.conversations.message_rows import Conversation
    from ...data.quarantine import fault_of

    messages, fault = text.question if isinstance(text, Conversation) else ([], fault_of(text))
    if fault:
        return [], f"{name} {''.join(fault)}"
    tokenizer, positions = generator.tokenizer, generator.decoder.config.max_position_embeddings
    ids = encode_asked(with_system(messages) if messages else str(text), tokenizer)
    if not ids:
        return [], f"{name} has no tokens: the model's tokenizer knows none of its characters"
    if len(ids) >= positions:
        return [], (
            f"{name} comes to {len(ids):,} tokens, and the model has {positions:,} positions for prompt and answer: "
            "shorten it"
        )
    try:
        generator.constraint_of(ids, config)
    except ValueError as error:
        return [], f"{name}: {error}"
    return ids, ""


def answers_in_order(
    generator: TextGenerator,
    rows: Iterable[Any],
    config: GenerationConfig,
    full: bool | None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> Iterator[dict[str, Any]]:
    """{"text", "stopped", "error"} of each row, in order, with no more than a window of them held.

    full: whether texts begin with the prompt; None: as the generator has it.
    """
    from ...data.conversations.message_rows import Conversation

    for window in windows(rows):
        texts = [text_of_row(row) for row in window]
        generator.note_lost([str(text) for text in texts if isinstance(text, str | Conversation)])
        found: dict[int, RowAnswer] = {}
        for answers in answer_window(generator, texts, config, max_batch_tokens):
            found |= answers
        for row, text in enumerate(texts):
            usual = generator.returns_full_text and not isinstance(text, Conversation)
            yield shown_answer(found[row], text, usual if full is None else full)


def text_of_row(row: Any) -> object:
    """A text or conversation itself, or what stands in a row under messages, else src_txt, else text.

    Checked rows of conversations (data/rows.py) have their last question as src_txt, too.
    """
    if is_conversation(row):
        row = {"messages": row}
    if isinstance(row, Mapping) and row.get("messages") is not None:
        from ...data.conversations.message_rows import Conversation

        return Conversation(row["messages"], row)
    return row.get("src_txt", row.get("text")) if isinstance(row, Mapping) else row


def shown_answer(answer: RowAnswer, prompt: object, full: bool) -> dict[str, Any]:
    """full: whether the text begins with the prompt."""
    text = answer.text if answer.text is None or not full else f"{prompt}{answer.text}"
    return {"text": text, "stopped": answer.stopped, "error": answer.error}
