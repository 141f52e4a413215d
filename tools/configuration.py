"""`python -m tools.configuration`: writes docs/configuration.md from the dataclasses and conf/."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmarks.config  # noqa: F401  (adds its command to STAGES)
from modules.config.base import MISSING
from modules.config.commands import STAGES
from modules.config.loader import stage_defaults
from modules.config.schema import CONF, GROUPS, Key, group_names, keys, type_name
from modules.system.bounded_read import read_plain_yaml

ROOT = Path(__file__).parents[1]


sys.path.insert(0, str(ROOT))

TARGET = ROOT / "docs" / "configuration.md"

HEAD = """# Configuration

Made by `python -m tools.configuration` from the dataclasses in `modules/config/` and from `conf/`; a test fails while
it isn't current. `python -m pipelines.STAGE --help` says the same on the terminal.

    python -m pipelines.finetune train.init_from=FOLDER data.path=my.csv train.learning_rate=2e-4
    python -m pipelines.finetune config=mine.yaml train.init_from=FOLDER

Later wins over earlier: a section's own defaults, `conf/model/NAME.yaml` and `conf/data/NAME.yaml` where such a section
is given a name, `conf/STAGE.yaml`, your file (`config=FILE.yaml`), the command line. `key=` counts as not given,
`key=null` unsets, lists and mappings are YAML: `train.sample_prompts=[春,秋]`. A wrong key, value or combination stops
everything before any work, all complaints together.
"""


def document() -> str:
    lines = [HEAD, "Stages: " + ", ".join(f"[{name}](#{name})" for name in STAGES), ""]
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
    yield from (f"## {stage}", "", f"`python -m pipelines.{stage}`: {(config_class.__doc__ or '').strip()}", "")
    yield from table([(key, defaults[key.name]) for key in keys(config_class) if "." not in key.name])
    yield from ("", f"`conf/{stage}.yaml`:", "", "```yaml")
    yield from (CONF / f"{stage}.yaml").read_text(encoding="utf-8").strip().splitlines()
    yield from ("```", "")


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
    yield from ("| Key | Type | Default | Meaning |", "|---|---|---|---|")
    for key, value in rows:
        if key.section:
            name = key.name if key.stage else key.section.__name__
            shown = [f"`{key.name}.…`", f"[{name}](#{name.lower()})", "`null`" if value is None else "", plain(key.doc)]
        else:
            shown = [f"`{key.name}`", plain(type_name(key.type)), f"`{written(value)}`", plain(key.doc)]
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
    if value == MISSING:
        return "must be given"
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
