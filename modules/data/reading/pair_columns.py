"""Which columns of preference rows hold the prompt, the chosen and the rejected answer."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

from ..quarantine import DataError, Findings
from .column_names import MESSAGES, OTHER_COLUMNS, nearest, setting

CHOSEN, REJECTED = "chosen", "rejected"

PROMPT_COLUMNS = ("src_txt", "prompt", MESSAGES, "conversations", "instruction", "question")
"""Where a prompt is looked for, in this order, unless data.columns names it: as TRL and LLaMA-Factory call it."""

BESIDE_PROMPT = ("input", "history", "system", "tools")
"""What else belongs to a prompt, in columns that can't be called otherwise."""

TARGETS = ("src_txt", CHOSEN, REJECTED, MESSAGES)
"""What a column of the user's may be, beside OTHER_COLUMNS: src_txt or messages is the prompt."""


def check_pair_mapping(columns: Mapping[str, str], section: str = "data.") -> dict[str, str]:
    """{"src_txt": the user's name for it, …} of what is mapped; DataError for any other target, or one named twice."""
    known, origin = (*TARGETS, *OTHER_COLUMNS), dict[str, str]()
    for name, target in columns.items():
        if target not in known:
            near = difflib.get_close_matches(str(target), known, 1, 0.3)
            hint = f"; did you mean {setting(name, near[0], section)}?" if near else ""
            raise DataError(
                f"{section}columns.{name}={target}: of preference rows the target must be src_txt (the prompt), chosen "
                f"or rejected (or messages, or one of {', '.join(OTHER_COLUMNS)}){hint}"
            )
        if target in origin:
            raise DataError(f"{section}columns: both {origin[target]!r} and {name!r} are mapped to {target}; keep one")
        origin[target] = name
    if {"src_txt", MESSAGES} <= origin.keys():
        raise DataError(f"{section}columns: the prompt is mapped to src_txt and to messages; keep one")
    return origin


def prompt_column(origin: Mapping[str, str], present: Collection[str]) -> str | None:
    """The column that holds the prompt; None where there is none, and the answers have to bring it along."""
    named = origin.get("src_txt") or origin.get(MESSAGES)
    return named or next((name for name in PROMPT_COLUMNS if name in present), None)


def answer_columns(origin: Mapping[str, str], present: Collection[str]) -> tuple[str, str]:
    """The columns of the chosen and of the rejected answer; tgt_txt is what was chosen where none is called so."""
    usual = "tgt_txt" if CHOSEN not in present and "tgt_txt" in present else CHOSEN
    return origin.get(CHOSEN, usual), origin.get(REJECTED, REJECTED)


def columns_of_pairs(origin: Mapping[str, str]) -> list[str]:
    """The user's names of all columns that may be read; any other may be as it likes."""
    return [*origin.values(), *PROMPT_COLUMNS, "tgt_txt", CHOSEN, REJECTED, *BESIDE_PROMPT]


def check_pairs_present(findings: Findings, origin: Mapping[str, str]) -> None:
    """DataError unless `findings.columns`, all that a source has, hold both answers and what the mapping names."""
    present = list(findings.columns)
    for target, name in origin.items():
        if name not in present and target not in OTHER_COLUMNS:
            raise DataError(missing_column(findings, name, target, present, f"{findings.section}columns names it"))
    for target, name in zip((CHOSEN, REJECTED), answer_columns(origin, present), strict=True):
        if name not in present:
            why = "preference rows have a prompt, a chosen and a rejected answer"
            raise DataError(missing_column(findings, name, target, present, why))


def missing_column(findings: Findings, name: str, target: str, present: Sequence[str], why: str) -> str:
    near = nearest(name, present) or "YOUR_COLUMN"
    return (
        f"{findings.where} has no column {name!r} ({why}); its columns are {', '.join(map(repr, present))}; say which "
        f"one holds it with {setting(near, target, findings.section)}"
    )


def refuse_pairs(findings: Findings, origin: Mapping[str, str]) -> None:
    """DataError for preference rows where others are wanted: their prompts alone would pass for plain text.

    origin: as `check_mapping` gives it. Who reads no answers, as predict, takes them.
    """
    answers = {origin[target] for target in ("tgt_txt", MESSAGES) if target in origin}
    unused = findings.columns.keys() - set(origin.values())
    if "tgt_txt" in origin and {CHOSEN, REJECTED} <= unused and not answers & findings.columns.keys():
        raise DataError(
            f"{findings.where} holds preferences (columns 'chosen' and 'rejected'), which python -m pipelines.prefer "
            f"learns from; to take the chosen answers as targets, give {findings.section}columns.chosen=tgt_txt"
        )
