"""`python -m tools.configuration`: writes docs/configuration.md from the dataclasses and conf/."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modules.config import commands
from modules.config.base import MISSING, StageConfig
from modules.config.loader import stage_defaults
from modules.config.schema import CONF, GROUPS, Key, group_names, keys, type_name
from modules.system.bounded_read import read_plain_yaml

ROOT = Path(__file__).parents[1]


sys.path.insert(0, str(ROOT))

TARGET = ROOT / "docs" / "configuration.md"

HEAD = """# Which keys are there, and how are they set?

    python -m pipelines.finetune train.init_from=FOLDER data.path=my.csv train.learning_rate=2e-4
    python -m pipelines.finetune config=mine.yaml train.init_from=FOLDER

Later wins over earlier: the defaults below, `conf/model/NAME.yaml` and the like where a section is given by name,
`conf/STAGE.yaml`, your own file (`config=FILE.yaml`), the command line. `key=` counts as not given, `key=null` unsets a
key. Lists and mappings are YAML: `train.sample_prompts=[春,秋]`. Wrong keys, values and combinations are reported
together, before any work starts. `python -m pipelines.STAGE --help` shows the same on the terminal.

A path may begin with `~`. In templates, separators and stop texts `\\n` on the command line is a line end, `\\t` a tab
and `\\\\` a backslash; in a file YAML reads them in double quotes. A file's `${key}` is another key's value, and
`\\${` stands for the text.

This page is made by `python -m tools.configuration` from `modules/config/` and `conf/`.
"""

STAGES = {name: config for name, config in commands.STAGES.items() if config.__module__.startswith("modules.")}
"""Without what benchmarks adds: `python -m benchmarks --help` shows its keys."""

SHARED = {key.name: key for key in keys(StageConfig)}
"""Keys of every stage; they are listed once."""


def document() -> str:
    lines = [HEAD, "Stages: " + ", ".join(f"[{name}](#{name})" for name in STAGES), ""]
    shared = StageConfig()
    rows = [(key, getattr(shared, name)) for name, key in SHARED.items() if "." not in name]
    lines += ["## Every stage", "", *table(rows)]
    lines += ["", "`generate`, `serve`, `convert`, `compare` and `sync` have only `tracking` of these.", ""]
    for stage in STAGES:
        lines += stage_part(stage)
    lines += [
        "# Sections",
        "",
        "What several stages share, with the defaults that hold where a stage names no other.",
        "",
    ]
    for section in sections():
        lines += section_part(section)
    return "\n".join(lines).rstrip() + "\n"


def stage_part(stage: str) -> Iterator[str]:
    config_class, defaults = STAGES[stage], stage_defaults(stage)
    doc = (config_class.__doc__ or "").strip()
    yield from (f"## {stage}", "", f"{doc} Set beforehand: [conf/{stage}.yaml](../conf/{stage}.yaml).", "")
    same = next(name for name, other in STAGES.items() if other is config_class)
    if same != stage:
        yield from (f"The keys of [{same}](#{same}).", "")
        return
    own = [(key, defaults[key.name]) for key in keys(config_class) if "." not in key.name and key.name not in SHARED]
    if own:
        yield from (*table(own), "")


def section_part(section: type) -> Iterator[str]:
    yield from (f"## {section.__name__}", "", (section.__doc__ or "").strip(), "")
    defaults = section()
    yield from table([(key, getattr(defaults, key.name)) for key in keys(section) if "." not in key.name])
    if group := GROUPS.get(section):
        yield from ("", f"By name, `{group}=NAME`:", "", "| Name | |", "|---|---|")
        for name in group_names(group):
            content = read_plain_yaml(CONF / group / f"{name}.yaml")
            yield f"| `{name}` | {', '.join(f'`{key}={written(value)}`' for key, value in flatten(content))} |"
    yield ""


def table(rows: list[tuple[Key, Any]]) -> Iterator[str]:
    yield from ("| Key and default | Type | Meaning |", "|---|---|---|")
    for key, value in rows:
        if key.section:
            name = key.name if key.stage else key.section.__name__
            shown = [f"`{key.name}{'=null' if value is None else '.…'}`", f"[{name}](#{name.lower()})", plain(key.doc)]
        elif value == MISSING:
            shown = [f"`{key.name}`, must be given", plain(type_name(key.type)), plain(key.doc)]
        else:
            shown = [f"`{key.name}={written(value)}`", plain(type_name(key.type)), plain(key.doc)]
        yield f"| {' | '.join(shown)} |"


def sections() -> list[type]:
    """Those that aren't stages, in the order in which stages name them."""
    found = [key.section for stage in STAGES.values() for key in keys(stage) if key.section and not key.stage]
    return list(dict.fromkeys(found))


def flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def written(value: Any) -> str:
    """As it would be given on the command line."""
    if value == "":
        return '""'
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    text = json.dumps(value) if value is None or isinstance(value, bool | dict) else str(value)
    return text.replace("\n", "\\n").replace("|", "\\|")


def plain(text: str) -> str:
    """As a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
