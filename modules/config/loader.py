"""Reading a configuration: YAML files and `key=value` arguments → a validated dataclass.

Later wins over earlier: the dataclasses' defaults; conf/model/NAME.yaml and conf/data/NAME.yaml where such a
section is given a name; conf/STAGE.yaml; conf/task/NAME.yaml, which speaks of the whole stage; the user's own file
(`config=FILE`); the command line. Every complaint is gathered and raised at once. This is the only file that imports
omegaconf: past it, only dataclasses travel.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from ..system.bounded_read import VOCABULARY, read_plain_yaml, read_text
from ..system.paths import expanded
from ..system.redaction import FROM_ENVIRONMENT
from .assignments import COMMAND_LINE, Assignment, leaves, not_text, parse_arguments, parse_value, unread_escapes
from .base import JSON, LINES, REMOVED, CommandConfig, ConfigError, extreme
from .commands import STAGES, implied_paths, implied_recipe
from .generation import as_json
from .mixing.mixture_sources import SOURCES, read_sources, spaced
from .mixing.named_sources import with_data_sets
from .model import ModelConfig
from .schema import CONF, Key, full_name, group_file, keys, settle_paths, suggestion, wanted, with_text_keys

logger = logging.getLogger("moyun.config")

LOOKED_UP = (
    r"; ${key} is another key's value, ${oc.env:NAME} the environment's, and \${…} is the text ${…} itself "
    r"(within double quotes \\${…})"
)


def from_environment(name: str, *default: str | None) -> str | None:
    """OmegaConf's oc.env, which also sees to it that the value isn't written down."""
    value: str | None = oc.env(name, *default)
    if value and name in os.environ:
        FROM_ENVIRONMENT[value] = f"${{oc.env:{name}}}"
    return value


OmegaConf.register_resolver("oc.env", from_environment, replace=True)


def load_config(stage: str, arguments: Sequence[str] = ()) -> Any:
    """A stage's configuration (an instance of STAGES[stage]) from conf/STAGE.yaml and `key=value` arguments.

    Arguments may also be written `--key value`, as MLflow Projects pass undeclared parameters. `key=` (empty)
    counts as not given; `key=null` unsets; lists and mappings are YAML: `train.sample_prompts=[春,秋]`.
    Raises ConfigError with everything that is wrong, before any work starts.
    """
    config_class = STAGES[stage]
    complaints: list[str] = []
    arguments = config_class.own_arguments(arguments)
    given = [(full_name(config_class, k), v, where) for k, v, where in parse_arguments(arguments, complaints)]
    files = list(stage_files(stage, config_class, complaints))
    users = [
        leaf
        for k, v, _ in given
        if k == "config"
        for leaf in read_yaml(Path(expanded(v)), config_class, "", complaints)
    ]
    users += [(k, v, where) for k, v, where in given if k != "config"]
    said = with_tasks(config_class, files, users, complaints)
    implied = *implied_paths(stage, said, users), *implied_recipe(stage, users)
    config = assign(config_class, [*said, *implied], complaints)
    return to_dataclass(config, complaints)


def to_dataclass(config: DictConfig, complaints: list[str]) -> Any:
    """The dataclass, checked; ConfigError for the complaints so far, missing keys, or broken rules between fields."""
    if not complaints:
        try:
            complaints += missing(config)
            result = OmegaConf.to_object(config)
        except OmegaConfBaseException as error:  # ${…} to a key that isn't there, or of another type
            complaints = complaints or [f"{error.full_key}: {str(error).splitlines()[0]}{LOOKED_UP}"]
    if complaints:
        raise ConfigError(complaints)
    paths = {complaint.partition("=")[2]: complaint for complaint in reversed(list(settle_paths(result)))}
    if complaints := [*reversed(paths.values()), *complaints_of(result)]:  # a path that stages share is named once
        raise ConfigError(complaints)
    return result


def missing(config: DictConfig) -> Iterator[str]:
    """What must still be given; for a command also what each of it is, and the command's line where it has its own."""
    config_class: type = OmegaConf.get_type(config) or object
    docs = {key.name: f": {key.doc}" for key in keys(config_class)} if issubclass(config_class, CommandConfig) else {}
    names = sorted(OmegaConf.missing_keys(config))
    yield from (f"{name} must be given{docs.get(name, '')}" for name in names)
    if names and docs and "python -m" in (usage := (config_class.__doc__ or "").strip()):
        yield usage


def stage_defaults(stage: str, named: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """What a stage's keys are when only `named` sections are given, as nested dicts; MISSING where one must be."""
    complaints: list[str] = []
    files = list(stage_files(stage, STAGES[stage], complaints))
    users = [(key, name, COMMAND_LINE) for key, name in named]
    config = assign(STAGES[stage], with_tasks(STAGES[stage], files, users, complaints), complaints)
    assert not complaints, complaints
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def load_model_config(path: Path) -> ModelConfig:
    """The architecture that a model folder's model.yaml describes; strict, like everything else."""
    complaints: list[str] = []
    try:
        content = read_plain_yaml(path)
    except (ValueError, OSError) as error:
        raise ConfigError([str(error)]) from error
    if not isinstance(content, dict):
        raise ConfigError([f"{path} must hold `key: value` lines"])
    config = assign(ModelConfig, [(str(key), value, path.name) for key, value in content.items()], complaints)
    try:
        result = to_dataclass(config, complaints)
    except ConfigError as error:
        raise ConfigError([f"{path}: {complaint}" for complaint in error.complaints]) from error
    assert isinstance(result, ModelConfig)
    return result


def validate(config: Any) -> None:
    """Checks the rules between fields, in every section; raises ConfigError."""
    if complaints := list(complaints_of(config)):
        raise ConfigError(complaints)


def complaints_of(config: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from complaints_of(value, f"{prefix}{field.name}.")
    own = list(config.complaints()) if hasattr(config, "complaints") else []
    yield from (f"{prefix}{complaint}" for complaint in own or extreme(config))


def to_yaml(config: Any) -> str:
    return OmegaConf.to_yaml(config if isinstance(config, Mapping) else dataclasses.asdict(config))


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
    known = {key.name: key for key in keys(config_class)}
    tasks = {name: key for name, key in known.items() if key.group == "task"}
    names = [leaf for leaf in (*files, *users) if leaf[0] in tasks and isinstance(leaf[1], str)]
    between: list[Assignment] = []
    for name, (_, value, where) in {leaf[0]: leaf for leaf in names}.items():
        if path := group_file(tasks[name], value, where, complaints):
            prefix = name.removesuffix("task")
            others = {key.name for key in keys(STAGES["evaluate"], prefix)} - {key.name for key in keys(config_class)}
            between += [leaf for leaf in read_yaml(path, config_class, prefix, complaints) if leaf[0] not in others]
            between.append((f"{name}.name", path.stem, path.name))
            if f"{prefix}train" in known:  # evaluate and register may take the model's own rows instead
                between += [(f"{prefix}data", *leaf[1:]) for leaf in between if leaf[0] == f"{name}.data"]
    return [leaf for leaf in (*files, *between, *users) if leaf not in names]


def read_yaml(path: Path, config_class: type, prefix: str, complaints: list[str]) -> Iterator[Assignment]:
    """A file's leaves; what stands under a section's name is a leaf of that section."""
    try:
        content = OmegaConf.load(io.StringIO(read_text(path, VOCABULARY)))
    except FileNotFoundError:
        complaints.append(f"config file {path} doesn't exist")
        return
    except OmegaConfBaseException as error:
        complaints.append(f"config file {path}: {error.full_key}: {str(error).splitlines()[0]}{LOOKED_UP}")
        return
    except (OSError, ValueError) as error:
        complaints.append(f"config file {error}" if str(path) in str(error) else f"config file {path}: {error}")
        return
    except Exception as error:
        complaints.append(f"config file {path} isn't YAML: {' '.join(str(error).split())}")
        return
    if not isinstance(content, DictConfig):
        complaints.append(f"config file {path} must hold `key: value` lines")
        return
    sections = {key.name for key in keys(config_class) if key.section}
    plain = OmegaConf.to_container(content, resolve=False)
    assert isinstance(plain, dict)
    yield from leaves(plain, prefix, sections, path.name)


def assign(config_class: type, assignments: list[Assignment], complaints: list[str]) -> DictConfig:
    """Whole sections first, so that a leaf given anywhere survives a change of group; then leaf by leaf."""
    config: DictConfig = OmegaConf.structured(config_class)
    known = {key.name: key for key in keys(config_class)}
    groups: dict[str, Assignment] = {}
    single: list[Assignment] = []
    for assignment in assignments:
        key = known.get(assignment[0])
        if key and key.section and (isinstance(assignment[1], str) or assignment[1] is None):
            groups[key.name] = assignment
        else:
            single.append(assignment)
    for name, (_, value, where) in groups.items():
        set_group(config, known[name], value, where, complaints)
    # A leaf of a section that is still ${another} comes last: it must find that other one complete.
    for name, value, where in sorted(single, key=lambda leaf: linked_section(config, known, leaf[0]) is not None):
        # From here on it is a section of its own: the change must not reach the one it pointed to.
        if section := linked_section(config, known, name):
            OmegaConf.update(config, section, copy.deepcopy(OmegaConf.select(config, section)), merge=False)
        set_leaf(config, known, name, value, where, complaints)
    return config


def linked_section(config: DictConfig, known: Mapping[str, Key], name: str) -> str | None:
    """The section around a key that stands as ${another section}."""
    sections = name.split(".")[:-1]
    for depth, last in enumerate(sections):
        above, section = ".".join(sections[:depth]), ".".join(sections[: depth + 1])
        parent = OmegaConf.select(config, above)
        if section in known and isinstance(parent, DictConfig) and OmegaConf.is_interpolation(parent, last):
            return section
    return None


def set_group(config: DictConfig, key: Key, value: str | None, where: str, complaints: list[str]) -> None:
    if value in (None, "null") or not key.group or value.startswith("${"):
        set_leaf(config, {key.name: key}, key.name, None if value == "null" else value, where, complaints)
        return
    if path := group_file(key, value, where, complaints):
        assert key.section
        OmegaConf.update(config, key.name, OmegaConf.structured(key.section))
        known = {k.name: k for k in keys(key.section, f"{key.name}.")}
        for name, leaf, file in read_yaml(path, key.section, f"{key.name}.", complaints):
            set_leaf(config, known, name, leaf, file, complaints)


def set_leaf(
    config: DictConfig, known: Mapping[str, Key], name: str, value: Any, where: str, complaints: list[str]
) -> None:
    mappings = (key for key in known.values() if key.container is dict)
    if name in known:
        key = known[name]
    elif mapping := next((key for key in mappings if name.startswith(f"{key.name}.")), None):
        key, value = mapping, {name.removeprefix(f"{mapping.name}."): value}  # data.columns.ANYTHING, dots too
    else:
        hint = f"; {REMOVED[name]}" if name in REMOVED else suggestion(name, known)
        complaints.append(f"{name} ({where}): no such key{hint}")
        return
    shown = "null" if value is None else f"{value[:200]}…" if isinstance(value, str) and len(value) > 200 else value
    parent = known.get(name.rpartition(".")[0])
    if parent and parent.section and OmegaConf.select(config, parent.name) is None:
        if where != COMMAND_LINE:  # a file may hold the whole section, as the config.yaml of a run does
            OmegaConf.update(config, parent.name, OmegaConf.structured(parent.section))
            set_leaf(config, known, name, value, where, complaints)
            return
        complaints.append(f"{name}={shown} ({where}): {parent.name} is unset; give {parent.name}=NAME too")
        return
    try:
        if where == COMMAND_LINE and name in known:
            value = spaced(value) if key.holds == SOURCES["holds"] else value
            value = parse_value(value, key.type, key.holds == LINES["holds"])
        elif key.holds == LINES["holds"] and unread_escapes(value):
            logger.warning("%s (%s) holds a backslash and a letter: YAML reads \\n in double quotes alone", name, where)
        elif key.holds == JSON["holds"] and isinstance(value, Mapping):
            value = as_json(name, value)
        if key.holds == SOURCES["holds"]:
            value = read_sources(with_data_sets(value))
        if not_text(value, key.type):
            complaints.append(f"{name}={shown} ({where}): must be text; put it in quotes")
            return
        OmegaConf.update(config, key.name, with_text_keys(value, key.type))
    except (OmegaConfBaseException, yaml.YAMLError):
        one = where == COMMAND_LINE and key.container is list and not re.search(r"[\[\]{},\"']", str(shown))
        complaints.append(f"{name}={shown} ({where}): {wanted(key)}{f'; one alone is {name}=[{shown}]' * one}")
    except ValueError as error:  # an escape
        complaints.append(f"{name}={shown} ({where}): {error}")
