"""Rows as Alpaca has them: instruction, input and output, with history, system and tools as LLaMA-Factory adds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..quarantine import ABSENT
from ..reading.column_names import MESSAGES
from .message_rows import BESIDE, is_nothing

INSTRUCTION, INPUT, HISTORY = "instruction", "input", "history"

OF_TALKS = (HISTORY, *BESIDE)
"""Columns that make conversations of such rows."""


def columns_beside(columns: Mapping[str, str]) -> tuple[str, ...]:
    """Those that belong to the prompt of an instruction, where the user's mapping says that it is the text."""
    if columns.get(INSTRUCTION) != "src_txt":
        return ()
    return tuple(name for name in (INPUT, *OF_TALKS) if name not in columns)


def read_beside(values: Mapping[str, list[Any]], rows: Sequence[Mapping[str, object]]) -> dict[str, list[Any]]:
    """A batch's columns by their new names, those beside the instruction read into the others.

    Each src_txt with its input; where there is one of OF_TALKS, and answers, the messages in place of the texts.
    """
    found = {name: column for name, column in values.items() if name not in (INPUT, *OF_TALKS)}
    if INPUT in values and "src_txt" in found:
        found["src_txt"] = [with_input(*pair) for pair in zip(found["src_txt"], values[INPUT], strict=True)]
    if values.keys().isdisjoint(OF_TALKS) or not {"src_txt", "tgt_txt"} <= found.keys():
        return found
    pairs = zip(rows, found.pop("src_txt"), found.pop("tgt_txt"), strict=True)
    return {**found, MESSAGES: [turns(row.get(HISTORY), source, target) for row, source, target in pairs]}


def with_input(source: object, given: object) -> object:
    """The prompt of an instruction and its input; the instruction as it is where there is none, or it isn't text."""
    if not isinstance(source, str) or given is None or given is ABSENT or given != given:  # NaN
        return source
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str)
    return f"{source}\n{text}" if text.strip() else source


def turns(history: object, source: object, *target: object) -> object:
    """The earlier turns with the last one; what the history is where it is no list."""
    if isinstance(history, str) and not is_nothing(history):
        try:
            history = json.loads(history)
        except (ValueError, RecursionError):
            return history
    history = history.tolist() if hasattr(history, "tolist") else history
    if is_nothing(history):
        history = []
    if not isinstance(history, list | tuple):
        return history
    earlier = [message for turn in history for message in as_turn(turn)]
    return [*earlier, *in_turns([source, *target])]


def as_turn(turn: object) -> list[object]:
    """A pair of question and answer as two messages; anything else as it is."""
    turn = turn.tolist() if hasattr(turn, "tolist") else turn
    return [*in_turns(turn)] if isinstance(turn, list | tuple) and len(turn) == 2 else [turn]


def in_turns(texts: Sequence[object]) -> list[object]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=False)]
