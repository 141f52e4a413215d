"""What keys a configuration class has, read off the dataclasses: dotted name, type, docstring, names of files."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .base import StageConfig
from .data import DataConfig
from .evaluation import TaskConfig
from .model import SizeConfig

CONF = Path(__file__).parents[2] / "conf"

GROUPS: dict[type, str] = {SizeConfig: "model", DataConfig: "data", TaskConfig: "task"}
"""Sections that can be given by name: `model=base` reads conf/model/base.yaml."""


@dataclass(frozen=True)
class Key:
    name: str
    type: Any
    doc: str
    section: type | None
    """The dataclass behind the key, where it is a section and not a leaf."""

    @property
    def group(self) -> str | None:
        return GROUPS.get(self.section) if self.section else None

    @property
    def stage(self) -> bool:
        return self.section is not None and issubclass(self.section, StageConfig)


def keys(config_class: type, prefix: str = "") -> Iterator[Key]:
    """Every key, sections before what is in them."""
    hints = typing.get_type_hints(config_class)
    docs = field_docs(config_class)
    for field in dataclasses.fields(config_class):
        section = dataclass_in(hints[field.name])
        yield Key(prefix + field.name, hints[field.name], docs.get(field.name, ""), section)
        if section:
            yield from keys(section, f"{prefix}{field.name}.")


def dataclass_in(hint: Any) -> type | None:
    """The dataclass of `Section` and of `Section | None`."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(type_name(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(option) for option in typing.get_args(hint))
    if hint is type(None):
        return "null"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


@cache
def field_docs(config_class: type) -> dict[str, str]:
    """Field → the string literal under it. Python drops these, so they are read from the source."""
    docs: dict[str, str] = {}
    for parent in reversed(config_class.__mro__):
        if not dataclasses.is_dataclass(parent):
            continue
        (definition,) = ast.parse(inspect.getsource(parent)).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            match statement, following:
                case (ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text)))):
                    docs[name] = inspect.cleandoc(text)
    return docs


def group_file(key: Key, value: str, where: str, complaints: list[str]) -> Path | None:
    """conf/GROUP/NAME.yaml, or the file itself that is named; None, and a complaint, where there is no such."""
    assert key.group
    path = Path(value) if value.endswith((".yaml", ".yml")) else CONF / key.group / f"{value}.yaml"
    if path.exists():
        return path
    hint = suggestion(value, group_names(key.group))
    complaints.append(f"{key.name}={value} ({where}): no such file or name; {wanted(key)}{hint}")
    return None


def wanted(key: Key) -> str:
    if key.group:
        return f"must be one of {', '.join(group_names(key.group))}, or a YAML file's path"
    if key.section:
        return f"{key.name} is a section: set its keys, {key.name}.KEY=VALUE (see --help)"
    example = {list: ", e.g. [a, b]", dict: ", e.g. {a: b}"}.get(typing.get_origin(key.type), "")
    return f"must be {type_name(key.type)}{example}"


def group_names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
