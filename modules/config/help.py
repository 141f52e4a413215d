"""`python -m pipelines.STAGE --help`: every key with its type, the value it has now, and its docstring."""

from __future__ import annotations

import types
import typing
from typing import Any

from .loading import CONF, stage_defaults
from .schema import Key, keys
from .sections import MISSING
from .stages import STAGES


def help_text(stage: str) -> str:
    config_class = STAGES[stage]
    defaults = stage_defaults(stage)
    lines = [
        f"python -m pipelines.{stage} key=value …   ({(config_class.__doc__ or '').strip()})",
        "",
        "  config=FILE.yaml reads keys from a file; the command line wins. key=null unsets.",
    ]
    for key in keys(config_class):
        lines += section_lines(key) if key.section else leaf_lines(key, value_at(defaults, key))
    return "\n".join(lines)


def section_lines(key: Key) -> list[str]:
    lines = ["", f"{key.name}: {(key.section.__doc__ or '').strip()}"]
    if key.group:
        names = sorted(path.stem for path in (CONF / key.group).glob("*.yaml"))
        lines.append(f"  {key.name}=NAME with NAME one of {', '.join(names)}, or a YAML file. {key.doc}".rstrip())
    return lines


def leaf_lines(key: Key, value: Any) -> list[str]:
    return [f"  {key.name} ({type_name(key.type)}) = {value}", f"      {key.doc}"]


def value_at(defaults: Any, key: Key) -> str:
    for part in key.name.split("."):
        if not isinstance(defaults, dict):  # a section that is unset
            return "null"
        defaults = defaults.get(part)
    if defaults == MISSING:
        return "(must be given)"
    return "null" if defaults is None else str(defaults)


def type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(type_name(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(option) for option in typing.get_args(hint))
    if hint is type(None):
        return "null"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
