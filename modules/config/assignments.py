"""Command-line arguments and nested mappings → what is assigned to which key."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

Assignment = tuple[str, Any, str]
"""(dotted key, value, where it was written)"""

COMMAND_LINE = "command line"
INTERPOLATION = re.compile(r"(\\*)\$\{")


def parse_arguments(arguments: Sequence[str], complaints: list[str]) -> Iterator[Assignment]:
    """`key=value`, `--key=value` and `--key value`."""
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, value = argument.removeprefix("--").partition("=")
        if not equals and argument.startswith("--") and rest and not rest[0].startswith("--"):
            value, equals = rest.pop(0), "="
        if not equals or not key:
            complaints.append(f"{argument!r} isn't understood: write key=value (see --help)")
        elif value != "":
            yield key, value, COMMAND_LINE


def parse_value(text: str, hint: Any) -> Any:
    """Text stays text, and each key's own type converts it: only null, lists and mappings are read as YAML."""
    if text == "null" and hint is not str:
        return None
    if typing.get_origin(hint) in (list, dict):
        return escaped(yaml.load(text, yaml.BaseLoader))  # whose scalars all are text: [007, null] holds no number
    return escaped(text) if hint in (str, str | None) else text


def escaped(value: Any) -> Any:
    """A prompt may hold ${…}; OmegaConf shall not look it up."""
    if isinstance(value, list):
        return [escaped(part) for part in value]
    return INTERPOLATION.sub(r"\1\1\\${", value) if isinstance(value, str) else value


def leaves(mapping: Mapping[Any, Any], prefix: str, sections: set[str], where: str) -> Iterator[Assignment]:
    for name, value in mapping.items():
        if isinstance(value, Mapping) and prefix + str(name) in sections:
            yield from leaves(value, f"{prefix}{name}.", sections, where)
        else:
            yield f"{prefix}{name}", value, where
