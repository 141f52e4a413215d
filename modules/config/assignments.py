"""Command-line arguments and nested mappings → what is assigned to which key."""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

Assignment = tuple[str, Any, str]
"""(dotted key, value, where it was written)"""

COMMAND_LINE = "command line"
NO_TEXT = re.compile("[\ud800-\udfff]")
"""What Python makes of bytes that aren't of the terminal's encoding."""

ESCAPE = re.compile(r"\\(.?)", re.DOTALL)
ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}
INTERPOLATION = re.compile(r"(\\*)\$\{")
BREAK = "[\r\n\x85\u2028\u2029]"
"""What YAML takes for a line's end."""
LONELY_BREAKS = re.compile(
    rf"""(?<![^\s\[,{{:])(?:"(?:\\.|[^"\\])*"|'(?:''|[^'])*')|(?<=[\[,])[ \t]*({BREAK}+)[ \t]*(?=[,\]])""", re.DOTALL
)
"""Quoted text, or an item of a list that is line ends and nothing else."""
ESCAPE_OR_BREAK = re.compile(rf"\\.|{BREAK}", re.DOTALL)
LAID_OUT = re.compile(rf"\s*\[[ \t]*{BREAK}\s*[^\s,\]]")
"""The beginning of a list whose items stand on lines of their own."""


def parse_arguments(arguments: Sequence[str], complaints: list[str]) -> Iterator[Assignment]:
    """`key=value`, `--key=value` and `--key value`."""
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if NO_TEXT.search(argument):
            encoding = sys.getfilesystemencoding()
            complaints.append(f"{argument!r} isn't text in this terminal's encoding ({encoding}): set LC_ALL=C.UTF-8")
            continue
        key, equals, value = argument.removeprefix("--").partition("=")
        if not equals and argument.startswith("--") and rest and not rest[0].startswith("--"):
            value, equals = rest.pop(0), "="
        if not equals or not key:
            complaints.append(f"{argument!r} isn't understood: write key=value (see --help)")
        elif value != "":
            yield key, value, COMMAND_LINE


LONE_STAR = re.compile(r"(?<=[\[,])\s*\*\s*(?=[\],])")


def without_null(hint: Any) -> Any:
    """A key's type without `| None`."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if isinstance(hint, types.UnionType) and len(kinds) == 1 else hint


def parse_value(text: str, hint: Any, lines: bool = False) -> Any:
    """Text stays text, and each key's own type converts it: only null, lists and mappings are read as YAML.

    lines: the text may run over lines, and its escapes are read. Raises ValueError for an escape that isn't known.
    """
    if text == "null" and hint is not str:
        return None
    hint = without_null(hint)
    if typing.get_origin(hint) in (list, dict):
        if not LAID_OUT.match(text):
            text = LONELY_BREAKS.sub(lambda found: f"'{found[1]}'" if found[1] else found[0], text)
        loader = LinesLoader if lines else TypedLoader
        try:
            return escaped(yaml.load(text, loader))
        except yaml.YAMLError:  # where * is a text by itself, as YAML has another use for it
            return escaped(yaml.load(LONE_STAR.sub("'*'", text), loader))
    if lines and text[:1] in ("'", '"') and text[:1] == text[1:][-1:] and ("\\" in text or "{src_txt}" in text):
        raise ValueError(
            f"the {text[0]} at both ends would be part of the text: leave them out; where they belong to it, give the "
            "key in a file (config=FILE)"
        )
    return escaped(with_line_ends(text) if lines else text) if hint is str else text


class TypedLoader(yaml.BaseLoader):
    """All scalars are text, [007, null] too, and hold the line ends that were typed, of which YAML makes spaces."""

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        text: str = super().construct_scalar(node)
        if node.start_mark.line == node.end_mark.line or node.style not in (None, "'", '"'):
            return text
        raw = node.start_mark.buffer[node.start_mark.pointer : node.end_mark.pointer]
        if node.style == '"':
            return str(yaml.load(ESCAPE_OR_BREAK.sub(as_escape, raw), yaml.BaseLoader))
        return raw[1:-1].replace("''", "'") if node.style else raw


class LinesLoader(TypedLoader):
    """Escapes are read too; YAML does so itself in double quotes."""

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        text = super().construct_scalar(node)
        if node.style is None and self.beside_line_end(node):
            raise ValueError(
                f"a line end stands outside of quotes beside {text!r}: put a text and its line ends in quotes"
            )
        return text if node.style == '"' else with_line_ends(text)

    @staticmethod
    def beside_line_end(node: yaml.ScalarNode) -> bool:
        """Whether a text of a list in brackets may have been meant with the line end before or after it."""
        whole, start, end = node.start_mark.buffer, node.start_mark.pointer, node.end_mark.pointer
        ends = whole[:start].rstrip(" \t")[-1:] + whole[end:].lstrip(" \t")[:1]
        return whole.lstrip().startswith("[") and bool(re.search(BREAK, ends))


def as_escape(found: re.Match[str]) -> str:
    """A line end as YAML's double quotes have it; an escape as it is."""
    return found[0] if found[0].startswith("\\") else f"\\u{ord(found[0]):04x}"


def with_line_ends(text: str) -> str:
    """A line end for \\n, a tab for \\t, a backslash for two. Raises ValueError for any other escape."""

    def read(found: re.Match[str]) -> str:
        if found[1] not in ESCAPES:
            raise ValueError(f"{found[0]} is no escape: \\n is a line end, \\t a tab, and a backslash is written \\\\")
        return ESCAPES[found[1]]

    return ESCAPE.sub(read, text)


def as_typed(value: Any) -> Any:
    """A text on one line, as it is typed where escapes are read."""
    lines = isinstance(value, str) and ("\n" in value or "\\" in value)
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") if lines else value


def unread_escapes(value: Any) -> bool:
    """Whether a value, or one in it, holds \\n or \\t as a file has them that gives them without double quotes."""
    if isinstance(value, list):
        return any(map(unread_escapes, value))
    return isinstance(value, str) and any(found[1] in ("n", "t") for found in ESCAPE.finditer(value))


def escaped(value: Any) -> Any:
    """A prompt may hold ${…}; OmegaConf shall not look it up."""
    if isinstance(value, list):
        return [escaped(part) for part in value]
    if isinstance(value, dict):
        return {key: escaped(part) for key, part in value.items()}
    return INTERPOLATION.sub(r"\1\1\\${", value) if isinstance(value, str) else value


def not_text(value: Any, hint: Any) -> bool:
    """Whether YAML made something else (007: 7; no: False) of what has to be text."""
    hint = without_null(hint)
    if hint is str:
        return isinstance(value, (bool, int, float))
    parts = list(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
    of_text = typing.get_origin(hint) in (list, dict) and typing.get_args(hint)[-1] is str
    return of_text and not all(isinstance(part, str) for part in parts)


def leaves(mapping: Mapping[Any, Any], prefix: str, sections: set[str], where: str) -> Iterator[Assignment]:
    for name, value in mapping.items():
        if isinstance(value, Mapping) and prefix + str(name) in sections:
            yield from leaves(value, f"{prefix}{name}.", sections, where)
        else:
            yield f"{prefix}{name}", value, where


def dotted_items(tree: Mapping[str, Any], prefix: str = "", numbered: bool = True) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of each leaf; numbered: a list of mappings is taken apart, too (data.mix.0.path)."""
    for key, value in tree.items():
        if numbered and isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
            value = {str(number): part for number, part in enumerate(value)}
        if isinstance(value, Mapping) and value:
            yield from dotted_items(value, f"{prefix}{key}.", numbered)
        else:
            yield prefix + key, value
