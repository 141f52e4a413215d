"""What keys a configuration class has, read off the dataclasses: dotted name, type, docstring, names of files."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import os
import types
import typing
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..system.paths import expanded, is_below, why_no_path
from .assignments import without_null
from .base import MODEL, PATH, STORE, URL, StageConfig, is_registered, model_folder, no_such_model, shown
from .commands import STAGES
from .data import AskedTaskConfig, DataConfig
from .evaluation import TaskConfig
from .generation import GenerationConfig
from .mixing.mixture_sources import EXAMPLE, SOURCES, SourceConfig
from .model import SizeConfig
from .prediction import GenerateConfig, PredictConfig

CONF = Path(__file__).parents[2] / "conf"

GROUPS: dict[type, str] = {SizeConfig: "model", DataConfig: "data", TaskConfig: "task", AskedTaskConfig: "task"}
"""Sections that can be given by name: `model=base` reads conf/model/base.yaml."""

KINDS = {"model": "size", "data": "data set"}
"""What a name in such a folder of conf/ stands for."""


@dataclass(frozen=True)
class Key:
    name: str
    type: Any
    doc: str
    section: type | None
    """The dataclass behind the key, where it is a section and not a leaf."""
    holds: str | None = None
    """What a value is, where its type doesn't say it: see PATH and LINES in base.py."""

    @property
    def container(self) -> Any:
        """list or dict, where values are one; None else."""
        return typing.get_origin(without_null(self.type))

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
        yield Key(
            prefix + field.name, hints[field.name], docs.get(field.name, ""), section, field.metadata.get("holds")
        )
        if section:
            yield from keys(section, f"{prefix}{field.name}.")


def dataclass_in(hint: Any) -> type | None:
    """The dataclass of `Section` and of `Section | None`."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:  # a Literal's is the latter
        return " or ".join(type_name(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(option) for option in typing.get_args(hint))
    if hint is type(None):
        return "null"
    if hint == list[SourceConfig]:
        return "list of sources"
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


def paths_in(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """(full name, section, field) of each key that holds a path, or a store's URI with a path in it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from paths_in(value, f"{prefix}{field.name}.")
        elif field.metadata.get("holds") == SOURCES["holds"]:
            for number, source in enumerate(value):
                yield from paths_in(source, f"{prefix}{field.name}.{number}.")
        elif field.metadata.get("holds") in (PATH["holds"], STORE["holds"]) and isinstance(value, str):
            yield f"{prefix}{field.name}", config, field


def settle_paths(config: Any) -> Iterator[str]:
    """Fills in ~ wherever a key holds a path; yields a complaint for each that no file or folder can have."""
    for key, section, field in paths_in(config):
        value = expanded(getattr(section, field.name))
        setattr(section, field.name, value)
        of_mix = isinstance(section, SourceConfig)
        group = "model" if field.name == "init_from" else "data" if of_mix else GROUPS.get(type(section), "")
        if group and field.name in ("path", "init_from") and value in group_names(group) and not os.path.exists(value):
            name = key.removesuffix("train.init_from") + "model" if group == "model" else key.removesuffix(".path")
            given = f"{{data: {value}}}" if of_mix else f"{name}={value}"
            yield f"{key}={value}: there is no such path; {given} is the {KINDS[group]} of that name"
        elif field.metadata != STORE and not is_registered(value) and (reason := why_no_path(value)):
            yield f"{key}={shown(value, 200)}: {reason}"


def missing_models(config: Any) -> Iterator[str]:
    """A complaint for each key that names a model's folder, or a tokenizer's, where there is none."""
    for key, section, field in paths_in(config):
        place = getattr(section, field.name)
        asked_elsewhere = is_registered(place) or place.startswith("<") or URL.match(place)
        made_later = is_below(place, getattr(config, "outputs", ()))
        if field.metadata != MODEL or asked_elsewhere or made_later:
            continue
        if os.path.isfile(model_folder(place)):
            yield f"{key}={place}: this is a file; give the model folder that it lies in, or another model folder"
        elif not os.path.exists(model_folder(place)):
            yield f"{key}={no_such_model(place)}"


def key_of_path(config: Any, path: str) -> str | None:
    """The key whose path this is, or lies in; of several the one that says most of it."""
    places = {key: os.path.abspath(getattr(section, field.name)) for key, section, field in paths_in(config)}
    around = [key for key, place in places.items() if f"{os.path.abspath(path)}{os.sep}".startswith(f"{place}{os.sep}")]
    return max(around, key=lambda key: len(places[key]), default=None)


def group_file(key: Key, value: str, where: str, complaints: list[str]) -> Path | None:
    """conf/GROUP/NAME.yaml, or the file itself that is named; None, and a complaint, where there is no such."""
    assert key.group
    path = Path(expanded(value)) if value.endswith((".yaml", ".yml")) else CONF / key.group / f"{value}.yaml"
    if os.path.exists(path):  # Path.exists raises OSError for a name that is too long
        return path
    if value.lstrip().startswith("{"):
        complaints.append(f"{key.name}={value} ({where}): {section_keys(key)}")
        return None
    hint = suggestion(value, group_names(key.group)) or other_key(key, value)
    complaints.append(f"{key.name}={value} ({where}): no such file or name; {wanted(key)}{hint}")
    return None


def other_key(key: Key, value: str) -> str:
    """Which key takes a file of rows or a model folder, given where only a name can stand."""
    if key.group == "data" and ("/" in value or "." in value):
        return f"; your own rows are {key.name}.path={value}"
    if key.group == "model" and ("/" in value or os.path.isdir(value)):
        return f"; a model folder to start from is {key.name.removesuffix('model')}train.init_from={value}"
    return ""


def wanted(key: Key) -> str:
    if key.group:
        return f"must be one of {', '.join(group_names(key.group))}, or a YAML file's path"
    if key.section:
        return section_keys(key)
    if key.holds == SOURCES["holds"]:
        return f"must be a list of sources, e.g. {EXAMPLE}"
    numbers = typing.get_args(key.type)[-1:] == (float,)
    pairs = ", e.g. {a: 0.5}" if numbers else ", e.g. {a: b}"
    example = {list: ", e.g. [a, b]", dict: pairs}.get(key.container, "")
    return f"must be {type_name(key.type)}{example}"


def section_keys(key: Key) -> str:
    return f"{key.name} is a section: set its keys, {key.name}.KEY=VALUE (see --help)"


def group_names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def suggestion(word: str, known: Collection[str]) -> str:
    """The keys that end in this word, else the one that is spelt most like it, else those whose last part is."""
    ending = [name for name in known if name.endswith(f".{word}")]
    close = ending[:4] or difflib.get_close_matches(word, known, n=1)
    if not close:
        last = difflib.get_close_matches(word, {name.rpartition(".")[2] for name in known}, n=1, cutoff=0.8)
        close = [name for name in known if name.rpartition(".")[2] in last][:4]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def with_text_keys(value: Any, hint: Any) -> Any:
    """A mapping whose keys YAML reads as numbers in a file, though they are text: 5."""
    if typing.get_args(hint)[:1] != (str,) or not isinstance(value, dict):
        return value
    return {str(key) if type(key) is int else key: part for key, part in value.items()}


def full_name(config_class: type, name: str) -> str:
    """generate and predict take sampling's keys without their section: temperature=0.5. predict's own seed is one."""
    sampling, own = ({field.name for field in dataclasses.fields(each)} for each in (GenerationConfig, config_class))
    short = config_class in (GenerateConfig, PredictConfig) and name.partition(".")[0] in sampling - own
    return f"generation.{name}" if short else name


def names_key(stage: str, argument: str) -> bool:
    """Whether what stands before the `=` is a key of the stage, or may be one misspelt."""
    name = argument.partition("=")[0]
    known = ["config", *(key.name for key in keys(STAGES[stage]))]
    return full_name(STAGES[stage], name) in known or "." in name or bool(suggestion(name, known))
