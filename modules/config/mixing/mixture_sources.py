"""The sources of a mixture, each with its share of the trained tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..assignments import with_line_ends
from ..base import LINES, MISSING, PATH

SOURCES = {"holds": "sources"}
"""Metadata of a field with a list of sources."""

EXAMPLE = "[{path: prepared/a, weight: 0.7}, {data: translate, weight: 0.3}]"

NAME = re.compile(r"\w[\w.-]*")
"""What metrics in MLflow can be called, without a slash."""


@dataclass
class SourceConfig:
    """One source of a mixture. What it doesn't say, data.* says for all."""

    path: str = field(default=MISSING, metadata=PATH)
    """Its rows, as data.path names them."""
    weight: float | None = None
    """Its share of the trained tokens, in proportion to the others' weights; unset for all: by size."""
    name: str | None = None
    """What metrics and the plan call it; unset: the last part of its path, or the name of its data set."""
    columns: dict[str, str] = field(default_factory=dict)
    """Its column names → src_txt, tgt_txt, …; unset: data.columns."""
    prompt_template: str | None = field(default=None, metadata=LINES)
    """How its src_txt becomes a prompt; unset: data.prompt_template."""
    validation_path: str | None = field(default=None, metadata=PATH)
    """Its rows for validation; unset: those of its path, else data.validation_fraction of its training rows."""
    test_path: str | None = field(default=None, metadata=PATH)
    """Its rows for evaluation; unset: those of its path."""
    max_rows: int | None = None
    """Only the first so many rows of each of its splits; unset: data.max_rows."""

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or Path(self.path).name.partition(".")[0]


def complaints_of_mix(mix: Sequence[SourceConfig], temperature: float) -> Iterator[str]:
    """What is wrong with a mixture, each complaint beginning with the key after `data.`."""
    for number, source in enumerate(mix, 1):
        where = f"mix: source {number} ({source.path})"
        if source.weight is not None and not 0 < source.weight < float("inf"):
            yield f"{where}: weight ({source.weight:g}) must be a positive number; leave the source out to take nothing"
        if not NAME.fullmatch(source.label):
            yield f"{where}: {source.label!r} can't name metrics; add name: NAME, of letters, digits, _ and -"
        if source.max_rows is not None and source.max_rows < 1:
            yield f"{where}: max_rows ({source.max_rows}) must be at least 1"
        if source.prompt_template is not None and source.prompt_template.count("{src_txt}") != 1:
            yield f'{where}: prompt_template ({source.prompt_template!r}) must hold "{{src_txt}}" exactly once'
    without = [source.label for source in mix if source.weight is None]
    if 0 < len(without) < len(mix):
        yield f"mix: {', '.join(without)} has no weight, and others have: give all of them one, or none"
    for name, count in Counter(source.label.casefold() for source in mix).items():
        if count > 1:
            yield f"mix: {count} sources are called {name}: tell them apart with name: NAME"
    if not 0 < temperature < float("inf"):
        yield f"mix_temperature ({temperature:g}) must be a positive number"
    elif temperature != 1 and not mix:
        yield f"mix_temperature={temperature:g} has no effect without data.mix"
    elif temperature != 1 and not without:
        yield f"mix_temperature={temperature:g} has no effect where sources have weights; drop it, or the weights"


GIVEN = ("data", *(entry.name for entry in fields(SourceConfig)))
"""What can be said of a source; data: NAME in place of what conf/data/NAME.yaml says (named_sources.py)."""

FIELD_BEFORE_VALUE = re.compile(rf"([{{,]\s*(?:{'|'.join(GIVEN)})):(?=\S)")


def spaced(text: str) -> str:
    """With a space after each colon behind a key of a source, as YAML needs it: `{path:prepared/a,weight:0.7}`."""
    return FIELD_BEFORE_VALUE.sub(r"\1: ", text)


def read_sources(value: Any) -> list[dict[str, Any]]:
    """A list of sources as YAML reads it, from a file or an argument. ValueError where it isn't one."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(source, Mapping) for source in value):
        raise ValueError(f"must be a list of sources, e.g. {EXAMPLE}")
    return [read_source(source, number) for number, source in enumerate(value, 1)]


def read_source(given: Mapping[Any, Any], number: int) -> dict[str, Any]:
    known = list(GIVEN)
    for key in (str(key).partition(":")[0] for key in given):  # `wieght:1` is a key without a value to YAML
        if key in known:
            continue
        near = get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"source {number}: no such key {key}; {hint}")
    found = {str(key): value for key, value in given.items() if value not in (None, "", "null")}
    for key, kind, what in (("weight", float, "a number"), ("max_rows", int, "a whole number")):
        try:
            found |= {key: kind(str(found[key]))} if key in found else {}
        except ValueError:
            raise ValueError(f"source {number}: {key} ({found[key]}) must be {what}") from None
    if "path" not in found:
        raise ValueError(f"source {number} has no path, nor data: NAME; write {EXAMPLE}")
    if isinstance(found["path"], list):
        found["path"] = f"[{','.join(map(str, found['path']))}]"
    if "columns" in found:
        if not isinstance(found["columns"], Mapping):
            raise ValueError(f"source {number}: columns must be a mapping, e.g. {{text1: src_txt}}")
        found["columns"] = {str(name): text for name, text in apart(found["columns"]).items()}
    for key in (key for key in found.keys() - {"weight", "max_rows"} if isinstance(found[key], int | float)):
        raise ValueError(f"source {number}: {key} ({found[key]}) must be text; put it in quotes")
    if "\\" in str(found.get("prompt_template", "")):
        found["prompt_template"] = with_line_ends(found["prompt_template"])
    return found


def apart(given: Mapping[Any, Any]) -> dict[Any, Any]:
    """`{text1:src_txt}`, which YAML takes for a key without a value, as {text1: src_txt}."""
    pairs = (
        tuple(key.split(":", 1)) if value in (None, "") and isinstance(key, str) and ":" in key else (key, value)
        for key, value in given.items()
    )
    return dict(pairs)  # type: ignore[arg-type]  # a split at the first colon gives two
