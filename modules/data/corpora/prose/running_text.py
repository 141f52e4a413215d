"""Sentences, one a row, back to the text that they were cut from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import datasets

from ...arrow import text_batches
from ...groups import GROUP, has_group
from ...quarantine import DataError
from ...reading.column_names import MESSAGES

CLOSED, CLOSED_BY_BLANK = "。！？；：，、…—”’」』）》〉】", ".!?;:,)\"'"
"""Signs after which the next sentence goes on at once, and after a blank."""


def running_text(sentences: Iterable[str]) -> str:
    """One text; what doesn't end in punctuation, such as a title, is a line of its own."""
    parts = []
    for sentence in sentences:
        parts += [sentence, "" if sentence.endswith(tuple(CLOSED)) else " "]
        if not sentence.endswith(tuple(CLOSED + CLOSED_BY_BLANK)):
            parts[-1] = "\n"
    return "".join(parts[:-1])


def joined_rows(rows: datasets.Dataset, text: str, key: str) -> datasets.Dataset:
    """A row of plain text a group: of all its rows that text, in their order. A row without a group stands alone.

    key: `join`, as it is typed. DataError where there is no group or no such text.
    """
    if MESSAGES in rows.column_names:
        raise DataError(f"{key}={text}: these rows are conversations, and only texts are joined; leave {key} out")
    for name, column in ((text, text), (GROUP, f"columns.YOUR_COLUMN={GROUP}")):
        if name not in rows.column_names:
            beside = f" ({key.removesuffix('join')}{column} names it)" if name == GROUP else ""
            raise DataError(
                f"{key}={text}: the rows have no column {name}{beside}; leave {key} out, or give that column"
            )
    texts: dict[str, list[str]] = {}
    for batch in text_batches(rows.select_columns([text, GROUP])):
        for sentence, label in zip(batch[text], batch[GROUP], strict=True):
            place = f"group {label}" if has_group(label) else f"row {len(texts)}"
            texts.setdefault(place, []).append(sentence)
    labels = [place.removeprefix("group ") if place.startswith("group ") else "" for place in texts]
    return datasets.Dataset.from_dict({"src_txt": list(map(running_text, texts.values())), GROUP: labels})


def columns_joined(columns: Mapping[str, str], text: str) -> dict[str, str]:
    """The user's names of the columns that joined rows are made of → what they are called there."""
    origin = {target: name for name, target in columns.items()}
    return {origin.get(text, text): "src_txt", origin.get(GROUP, GROUP): GROUP}
