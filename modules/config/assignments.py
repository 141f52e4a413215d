"""Command-line arguments and YAML files → what is assigned to which key."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from .base import CommandConfig
from .evaluation import TaskConfig
from .schema import CONF, group_file, keys

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


def stage_files(stage: str, config_class: type[CommandConfig], complaints: list[str]) -> Iterator[Assignment]:
    """conf/STAGE.yaml, and for a stage made of stages (main) theirs first."""
    for key in keys(config_class):
        if key.stage and "." not in key.name:
            yield from read_yaml(CONF / f"{key.name}.yaml", config_class, f"{key.name}.", complaints)
    yield from read_yaml(CONF / f"{stage}.yaml", config_class, "", complaints)


def with_tasks(
    config_class: type[CommandConfig], files: list[Assignment], users: list[Assignment], complaints: list[str]
) -> list[Assignment]:
    """All assignments, and between the stage's and the user's those of the file that `task=NAME` was last said of."""
    tasks = {key.name: key for key in keys(config_class) if key.section is TaskConfig}
    names = [leaf for leaf in (*files, *users) if leaf[0] in tasks and isinstance(leaf[1], str)]
    between: list[Assignment] = []
    for name, (_, value, where) in {leaf[0]: leaf for leaf in names}.items():
        path = group_file(tasks[name], value, where, complaints)
        if path:
            between += read_yaml(path, config_class, name.removesuffix("task"), complaints)
            between.append((f"{name}.name", path.stem, path.name))
    return [leaf for leaf in (*files, *between, *users) if leaf not in names]


def read_yaml(path: Path, config_class: type, prefix: str, complaints: list[str]) -> Iterator[Assignment]:
    """A file's leaves; what stands under a section's name is a leaf of that section."""
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        complaints.append(f"config file {path} doesn't exist")
        return
    except Exception as error:
        complaints.append(f"config file {path} isn't YAML: {error}")
        return
    if not isinstance(content, DictConfig):
        complaints.append(f"config file {path} must hold `key: value` lines")
        return
    sections = {key.name for key in keys(config_class) if key.section}
    plain = OmegaConf.to_container(content, resolve=False)
    assert isinstance(plain, dict)
    yield from leaves(plain, prefix, sections, path.name)


def leaves(mapping: Mapping[Any, Any], prefix: str, sections: set[str], where: str) -> Iterator[Assignment]:
    for name, value in mapping.items():
        if isinstance(value, Mapping) and prefix + str(name) in sections:
            yield from leaves(value, f"{prefix}{name}.", sections, where)
        else:
            yield f"{prefix}{name}", value, where
