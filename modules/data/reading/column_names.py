"""Which of a source's columns hold the texts: what the user's mapping says, and names that only nearly fit."""

from __future__ import annotations

import difflib
import json
import re
import shlex
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ..quarantine import DataError, Findings

TEXT_COLUMNS = ("src_txt", "tgt_txt")

MESSAGES = "messages"
"""In place of the texts: what user and assistant say in turns. Checked rows have the last turn as their texts."""

OTHER_COLUMNS = ("references", "slots", "choices", "answer", "group")
"""What evaluation reads beside the texts, and prepare keeps; a split may be without."""

SCORED_COLUMNS = (*TEXT_COLUMNS, MESSAGES, *OTHER_COLUMNS[:-1])
"""What decides about the scores of an answer; the group only about their intervals."""

SEPARATORS = ";\t|,，；、"
"""What columns may turn out to be separated by, where the whole header is one name."""

NEAR = 0.85
"""Share of two plain names' letters that match, from which one is taken for the other mistyped (tgt_text)."""

PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]+")
"""A column's name that can stand in a key, also where `mlflow run -P` passes it on."""

TARGET_NAMES = {"targettext", "targettxt", "target", "targets", "tgt", "trg", "trgtxt", "trgtext"}
"""Plain names of a target that are spelt out, or cut short, and so match too few letters."""


CONVERSATION_NAMES = {"message", "messages", "conversation", "conversations", "dialog", "dialogue", "chat", "chats"}
"""Plain names of a column that may hold conversations."""


class EveryColumn(Collection[str]):
    """Stands for the names of all columns, where they aren't known as yet."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


EVERY_COLUMN = EveryColumn()


def used_columns(texts: Collection[str], extras: Collection[str]) -> Collection[str]:
    """Names of the columns that are read."""
    return EVERY_COLUMN if extras is EVERY_COLUMN else {*texts, *extras}


def check_mapping(columns: Mapping[str, str], section: str = "data.") -> dict[str, str]:
    """{"src_txt": the user's name for it, …}, without regard to what the data holds; OTHER_COLUMNS where mapped.

    Both the texts and MESSAGES, unless the mapping says which there are.
    """
    origin: dict[str, str] = {}
    known = (*TEXT_COLUMNS, MESSAGES, *OTHER_COLUMNS)
    for name, target in columns.items():
        if target not in known:
            near = difflib.get_close_matches(str(target), known, 1, 0.3)
            hint = f"; did you mean {setting(name, near[0], section)}?" if near else ""
            others = ", ".join(OTHER_COLUMNS)
            raise DataError(
                f"{section}columns.{name}={target}: the target must be src_txt or tgt_txt (or messages, or one of "
                f"{others}){hint}"
            )
        if target in origin:
            raise DataError(f"{section}columns: both {origin[target]!r} and {name!r} are mapped to {target}; keep one")
        origin[target] = name
    texts = [target for target in TEXT_COLUMNS if target in origin]
    if texts and MESSAGES in origin:
        raise DataError(
            f"{section}columns: {origin[MESSAGES]!r} is mapped to messages and {origin[texts[0]]!r} to {texts[0]}: "
            "conversations have no texts beside them; keep one"
        )
    wanted = [MESSAGES] if MESSAGES in origin else [*TEXT_COLUMNS, *([] if texts else [MESSAGES])]
    origin = {target: target for target in wanted if target not in columns} | origin
    return {target: origin[target] for target in known if target in origin}


def require_mapped(present: Iterable[Collection[str]], columns: Mapping[str, str], section: str = "data.") -> None:
    """DataError where a column beside the texts was mapped, and none of the splits has it.

    present: the columns of each, by the user's names or by those that they are mapped to.
    """
    found = set().union(*present)
    for name, target in columns.items():
        if target in OTHER_COLUMNS and not found & {name, target}:
            near = nearest(name, found - set(TEXT_COLUMNS))
            hint = f"did you mean {setting(near, target, section)}?" if near else "correct its name"
            raise DataError(f"{section}columns.{name}={target}: no rows have a column {name!r}; {hint}")


def setting(name: str, target: str, section: str) -> str:
    """The argument that maps a column, as it is typed in a shell."""
    if PLAIN_KEY.fullmatch(name):
        return f"{section}columns.{name}={target}"
    # Any other goes into a mapping: `mlflow run -P` takes none in a key, and nobody can see some characters.
    shown = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in json.dumps(name, ensure_ascii=False))
    return shlex.quote(f"{section}columns={{{shown}: {target}}}")


def plain(name: str) -> str:
    """A name without what is easily mistyped or unseen: case, width, spaces, hyphens, underscores, byte order marks."""
    return "".join(character for character in unicodedata.normalize("NFKC", name).casefold() if character.isalnum())


def nearest(wanted: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Of `names` the one most like the wanted one; None where none is."""
    by_plain = {plain(name): name for name in names}
    if wanted == "tgt_txt" and (known := TARGET_NAMES & set(by_plain)):
        return by_plain[min(known)]
    near = difflib.get_close_matches(plain(wanted), by_plain, 1, cutoff)
    return by_plain[near[0]] if near else None


def check_distinct(names: Sequence[str], used: Collection[str], place: str) -> None:
    """DataError where a column that is used stands twice; any other may."""
    if repeated := sorted({name for name in names if name in used and names.count(name) > 1}):
        unnamed = " (these have no name, as commas at a line's end make them)" if "" in repeated else ""
        raise DataError(f"{place}: duplicate columns {repeated}; rename or remove all but one{unnamed}")


def check_present(findings: Findings, columns: Mapping[str, str], origin: Mapping[str, str]) -> None:
    """DataError unless `findings.columns`, all that a source has, hold what the mapping and training ask for."""
    present = list(findings.columns)
    listed = ", ".join(map(repr, present))
    used = {origin[target] for target in origin}
    if not used & set(present):
        _check_separated(findings, present, listed)
    for name, target in columns.items():
        if name not in findings.columns:
            if target in OTHER_COLUMNS:
                continue  # another split may have it: require_mapped
            near = nearest(name, (column for column in present if column not in columns))
            hint = f"did you mean {setting(near, target, findings.section)}?" if near else "name one of these"
            if target in findings.columns and target not in columns:
                hint = f"{target} is there: leave {findings.section}columns for it out"
            raise DataError(f"{findings.where} has no column {name!r}; its columns are {listed}; {hint}")
        if name != target and target in findings.columns and target not in columns:
            raise DataError(
                f"{findings.where}: two columns would become {target}: {target!r} itself and {name!r}, by"
                f" {setting(name, target, findings.section)}; leave that setting out, or rename the column {target!r};"
                f" the columns are {listed}"
            )
    if origin.get(MESSAGES) in findings.columns:
        _check_alone(findings, origin)
        return
    free = [name for name in present if name not in used]
    if origin.get("src_txt") not in findings.columns:
        if MESSAGES in origin:
            _check_other_name(findings, free, listed)
        example = setting(nearest("src_txt", free) or "YOUR_COLUMN", "src_txt", findings.section)
        if "YOUR_COLUMN" in example and not all(map(PLAIN_KEY.fullmatch, free)):  # which the user puts in its place
            example = f"""'{findings.section}columns={{"YOUR_COLUMN": src_txt}}'"""
        lack = "has no column src_txt" if "src_txt" in origin else "has its src_txt mapped to tgt_txt alone"
        raise DataError(
            f"{findings.where} {lack}; its columns are {listed}; say which one holds the text with {example}"
        )
    if origin.get("tgt_txt") == "tgt_txt" and "tgt_txt" not in findings.columns:
        _check_nearly_named(findings, free, listed)


def _check_alone(findings: Findings, origin: Mapping[str, str]) -> None:
    """Conversations beside texts: which of them are meant can't be told."""
    texts = [origin[target] for target in TEXT_COLUMNS if origin.get(target) in findings.columns]
    if texts:
        both = [(origin[MESSAGES], MESSAGES), *((name, "src_txt") for name in texts if name == origin["src_txt"])]
        which = " or ".join(setting(*pair, findings.section) for pair in both)
        raise DataError(
            f"{findings.where} has conversations ({origin[MESSAGES]!r}) and beside them "
            f"{' and '.join(map(repr, texts))}; say which are meant: {which}"
        )


def _check_other_name(findings: Findings, names: Sequence[str], listed: str) -> None:
    """Where no column is called src_txt or messages, and one as conversations often are."""
    if talks := [name for name in names if plain(name) in CONVERSATION_NAMES]:
        raise DataError(
            f"{findings.where} has no column src_txt; its columns are {listed}; if {talks[0]!r} holds what user and "
            f"assistant say in turns, give {setting(talks[0], MESSAGES, findings.section)}"
        )
    if {"instruction", "output"} <= set(names):
        mapped = " ".join(
            setting(*pair, findings.section) for pair in (("instruction", "src_txt"), ("output", "tgt_txt"))
        )
        raise DataError(
            f"{findings.where} has no column src_txt; its columns are {listed}, as Alpaca's rows have; give {mapped}: "
            "input, history and system are then read with them"
        )
    if {"role", "content"} <= set(names) or {"from", "value"} <= set(names):
        raise DataError(
            f"{findings.where} has no column src_txt; its columns are {listed}, as messages have; a row is a whole "
            'conversation: {"messages": [{"role": …, "content": …}, …]}'
        )


def _check_separated(findings: Findings, present: Sequence[str], listed: str) -> None:
    """Where a whole header was taken for one name, because columns are separated by something else."""
    sign = next((sign for sign in SEPARATORS if len(present) == 1 and sign in present[0]), None)
    if sign:
        width = "" if sign.isascii() else " (full width)"
        raise DataError(
            f"{findings.where} has no column src_txt but a single one, {listed}: are they separated by {sign!r}{width}?"
            " Separate them by commas in a .csv, by tabs in a .tsv"
        )


def _check_nearly_named(findings: Findings, names: Iterable[str], listed: str) -> None:
    """Rows whose target is passed over would train as plain text, and nothing would show it."""
    if near := nearest("tgt_txt", names, NEAR):
        raise DataError(
            f"{findings.where} has no column tgt_txt but {near!r}; its columns are {listed}; if it holds the targets,"
            f" give {setting(near, 'tgt_txt', findings.section)}; if not, rename or remove it"
        )
