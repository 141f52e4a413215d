"""Reading a configuration: YAML files and `key=value` arguments → a validated dataclass.

Later wins over earlier: the dataclasses' defaults; conf/model/NAME.yaml and conf/data/NAME.yaml where such a
section is given a name; conf/STAGE.yaml; the user's own file (`config=FILE`); the command line. Every complaint
is gathered and raised at once. This is the only file that imports omegaconf: past it, only dataclasses travel.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .schema import Key, keys
from .sections import ModelConfig
from .stages import STAGES, StageConfig

CONF = Path(__file__).parents[2] / "conf"

Assignment = tuple[str, Any, str]
"""(dotted key, value, where it was written)"""

COMMAND_LINE = "command line"


class ConfigError(ValueError):
    """All that is wrong with a configuration, one complaint a line."""

    def __init__(self, complaints: Sequence[str]) -> None:
        self.complaints = list(complaints)
        super().__init__("\n".join(f"  - {complaint}" for complaint in self.complaints))


def load_config(stage: str, arguments: Sequence[str] = ()) -> Any:
    """A stage's configuration (an instance of STAGES[stage]) from conf/STAGE.yaml and `key=value` arguments.

    Arguments may also be written `--key value`, as MLflow Projects pass undeclared parameters. `key=` (empty)
    counts as not given; `key=null` unsets; lists and mappings are YAML: `train.sample_prompts=[春,秋]`.
    Raises ConfigError with everything that is wrong, before any work starts.
    """
    config_class = STAGES[stage]
    complaints: list[str] = []
    given = list(parse_arguments(arguments, complaints))
    assignments = [*stage_files(stage, config_class, complaints)]
    for key, value, where in given:
        if key == "config":
            assignments += read_yaml(Path(value), config_class, "", complaints)
    assignments += [(k, v, where) for k, v, where in given if k != "config"]
    config = assign(config_class, assignments, complaints)
    if not complaints:
        complaints += [f"{key} must be given" for key in sorted(OmegaConf.missing_keys(config))]
    if complaints:
        raise ConfigError(complaints)
    result = OmegaConf.to_object(config)
    validate(result)
    return result


def stage_defaults(stage: str) -> dict[str, Any]:
    """What a stage's keys are when nothing is given, as plain nested dicts; MISSING where something must be."""
    complaints: list[str] = []
    config = assign(STAGES[stage], list(stage_files(stage, STAGES[stage], complaints)), complaints)
    assert not complaints, complaints
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def load_model_config(path: Path) -> ModelConfig:
    """The architecture that a model folder's model.yaml describes; strict, like everything else."""
    complaints: list[str] = []
    config = assign(ModelConfig, list(read_yaml(path, ModelConfig, "", complaints)), complaints)
    complaints += [f"{key} is missing" for key in sorted(OmegaConf.missing_keys(config))] if not complaints else []
    if complaints:
        raise ConfigError([f"{path}: {complaint}" for complaint in complaints])
    result = OmegaConf.to_object(config)
    assert isinstance(result, ModelConfig)
    validate(result)
    return result


def validate(config: Any) -> None:
    """Checks the rules between fields, in every section; raises ConfigError."""
    complaints = list(complaints_of(config))
    if complaints:
        raise ConfigError(complaints)


def complaints_of(config: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from complaints_of(value, f"{prefix}{field.name}.")
    if hasattr(config, "complaints"):
        yield from (f"{prefix}{complaint}" for complaint in config.complaints())


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain nested dicts: what may be written to checkpoints and files."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    return OmegaConf.to_yaml(config if isinstance(config, Mapping) else to_dict(config))


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
        content = OmegaConf.create(f"value: {text}")
        return OmegaConf.to_container(content)["value"]  # type: ignore[index,call-overload]
    return text


def stage_files(stage: str, config_class: type[StageConfig], complaints: list[str]) -> Iterator[Assignment]:
    """conf/STAGE.yaml, and for a stage made of stages (main) theirs first."""
    for key in keys(config_class):
        if key.stage and "." not in key.name:
            yield from read_yaml(CONF / f"{key.name}.yaml", config_class, f"{key.name}.", complaints)
    yield from read_yaml(CONF / f"{stage}.yaml", config_class, "", complaints)


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
    for name, value, where in single:
        set_leaf(config, known, name, value, where, complaints)
    return config


def set_group(config: DictConfig, key: Key, value: str | None, where: str, complaints: list[str]) -> None:
    if value in (None, "null") or not key.group or value.startswith("${"):
        set_leaf(config, {key.name: key}, key.name, None if value == "null" else value, where, complaints)
        return
    path = Path(value) if value.endswith((".yaml", ".yml")) else CONF / key.group / f"{value}.yaml"
    if not path.exists():
        names = sorted(p.stem for p in (CONF / key.group).glob("*.yaml"))
        complaints.append(f"{key.name}={value} ({where}): there is {', '.join(names)}{suggestion(value, names)}")
        return
    assert key.section
    OmegaConf.update(config, key.name, OmegaConf.structured(key.section))
    known = {k.name: k for k in keys(key.section, f"{key.name}.")}
    for name, leaf, file in read_yaml(path, key.section, f"{key.name}.", complaints):
        set_leaf(config, known, name, leaf, file, complaints)


def set_leaf(
    config: DictConfig, known: Mapping[str, Key], name: str, value: Any, where: str, complaints: list[str]
) -> None:
    parent = known.get(name.rpartition(".")[0])
    inside_mapping = parent is not None and parent.section is None  # data.columns.ANYTHING
    if name not in known and not inside_mapping:
        complaints.append(f"{name} ({where}): no such key{suggestion(name, known)}")
        return
    try:
        if where == COMMAND_LINE and name in known:
            value = parse_value(value, known[name].type)
        OmegaConf.update(config, name, value)
    except (OmegaConfBaseException, YAMLError) as error:
        reason = str(error).splitlines()[0].replace("Value", "value", 1)
        complaints.append(f"{name}={value} ({where}): {reason}")


def suggestion(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
