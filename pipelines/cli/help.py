"""`python -m pipelines.STAGE --help`: every key with its type, the value it has now, and its docstring."""

from __future__ import annotations

from typing import Any

from modules.config.assignments import as_typed
from modules.config.base import MISSING
from modules.config.commands import STAGES
from modules.config.loader import stage_defaults
from modules.config.schema import Key, group_names, keys, type_name


def help_text(stage: str) -> str:
    config_class = STAGES[stage]
    defaults = stage_defaults(stage)
    program = getattr(config_class, "program", f"pipelines.{stage}")
    lines = [
        f"python -m {program} key=value …   ({(config_class.__doc__ or '').strip()})",
        "",
        "  config=FILE.yaml reads keys from a file; the command line wins. key=null unsets.",
        "  A path may begin with ~. In templates and stop texts \\n ends a line, \\t is a tab, \\\\ a backslash",
        "  (in a file: in double quotes). A file's ${key} is looked up; the command line's stays as it is.",
    ]
    for key in keys(config_class):
        lines += section_lines(key) if key.section else leaf_lines(key, value_at(defaults, key))
    return "\n".join(lines)


def section_lines(key: Key) -> list[str]:
    lines = ["", f"{key.name}: {(key.section.__doc__ or '').strip()}"]
    if key.group:
        names = ", ".join(group_names(key.group))
        lines.append(f"  {key.name}=NAME with NAME one of {names}, or a YAML file. {key.doc}".rstrip())
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
    return "null" if defaults is None else str(as_typed(defaults))
