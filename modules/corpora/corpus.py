"""What a corpus of task data is made of, before it is split."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .packages import Package

HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Example:
    """A pair to learn."""

    source: str
    target: str
    whole: str
    """What must not be divided between splits: examples of one text, or of near-copies of it, stay together."""
    columns: dict[str, Any] = field(default_factory=dict)
    """More columns of its row; the same for all examples of one source."""


@dataclass(frozen=True)
class Corpus:
    """Where a task's data come from and how they are read."""

    name: str
    licence: str
    read: Callable[[Sequence[bytes], Counter[str]], list[Example]]
    """The members' contents → examples; counts what it leaves out and why. LookupError, TypeError or ValueError for
    another layout."""
    package: Package | None = None
    """None: a user's own copy, as archive="""
    members: tuple[str, ...] = ()
    prose: bool = True
    """Whether texts with much in common are versions of one another; dialogue acts are all of the same few parts."""
    layout: str = ""
    """Of a user's own copy, for messages."""


def json_lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.decode("utf-8").splitlines() if line.strip()]


def is_text(value: object) -> bool:
    """Whether it can stand in a row: JSON may also hold half a surrogate pair, which no file takes."""
    return isinstance(value, str) and bool(value.strip()) and not HALF.search(value)
