"""What a sweep tries: the values of each key, as they are written, and whether the stage takes them."""

from __future__ import annotations

import math
import re
import shlex
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import yaml

from ..assignments import TypedLoader, parse_arguments
from ..base import ConfigError
from ..commands import STAGES
from ..evaluation import MEASURES
from ..loader import load_config
from ..schema import Key, keys, suggestion
from ..training import BY_SOURCE, VALIDATED
from .command import ALL_MEASURES, SweepConfig, as_argument

Values = dict[str, str]
"""Key → value as it is typed on the command line."""

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"(log\s+)?({NUMBER})\s*\.\.\s*({NUMBER})(?:\s+in\s+(\d+))?")
GRAMMAR = "write a list (8,16), a range (0..0.3 or log 1e-5..1e-2), or so many values of one (log 1e-5..1e-2 in 7)"

NOT_SEARCHED = {
    "seed": "the winner is trained with several by confirm_seeds",
    "output_dir": "each trial has a folder in the sweep's output_dir",
    "dry_run": "give it as dry_run=true, of the whole sweep",
    "resume_from": "a trial goes on with its own checkpoints by itself",
    "allow_changed": "a trial goes on as it began",
    "devices": "a trial trains on one device; workers=N trains N trials at a time",
    "nodes": "a trial trains on one device; workers=N trains N trials at a time",
}
"""Last part of a key → why it is no key to search, or to give to all trials."""

SELECT_BY = "train.select_by"

AFTER_TRIALS = ("evaluate", "register", "model_name", "force")
"""First parts of main's keys that decide nothing up to its finetune."""

PER_TOKEN, PER_CHAR = ("val/loss", "val/perplexity"), "give metric=val/perplexity_per_char"

TRIED = 64
"""Combinations that are looked at for one in which a value can be used."""


@dataclass(frozen=True)
class Dimension:
    """A key and its values: a list, or a range."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        """Values that show whether the stage takes them: of a list all, of a range both ends."""
        return self.values or (self.typed(self.low), self.typed(self.high))

    def at(self, share: float) -> str | int | float:
        """The value that lies so far (0 to 1) on the way through the list or the range."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        if self.whole and not self.log:
            return min(int(self.low) + int(share * (self.high - self.low + 1)), int(self.high))
        found = self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)
        return round(found) if self.whole else found

    def typed(self, number: float) -> str:
        """With three digits, which is as much as a rate needs; never beyond an end."""
        text = str(round(number)) if self.whole else f"{number:.3g}"
        inside = self.low <= float(text) <= self.high
        return text if inside else repr(min(max(number, self.low), self.high))


def read_space(config: SweepConfig) -> list[Dimension]:
    """Raises ConfigError with all that is wrong with the space."""
    known = {key.name: key for key in keys(STAGES[config.stage])}
    given = {argument.partition("=")[0] for argument in config.given}
    complaints: list[str] = [] if config.space else [f"space must be given: space.KEY=VALUES; {GRAMMAR}"]
    found: list[Dimension] = []
    for name, values in config.space.items():
        try:
            if config.stage == "main" and name.partition(".")[0] in AFTER_TRIALS:
                raise ValueError("trials of main end with finetune, which this key doesn't change")
            found.append(read_dimension(name, values, known))
            if name.startswith(("tokenizer.", "pretrain.tokenizer.")) and config.metric in PER_TOKEN:
                raise ValueError(f"{config.metric} is per token, and can't be compared between tokenizers: {PER_CHAR}")
            if name in given:
                raise ValueError(f"{name} is given as well; drop it, or the space's")
            if config.method == "grid" and not found[-1].values:
                raise ValueError(f"a grid has no ranges; say how many values of it: '{values} in 5', or method=tpe")
        except ValueError as error:
            complaints.append(f"space.{name}={shown(values)}: {error}")
    if config.method is None or config.method == "grid":
        grid = bool(found) and all(dimension.values for dimension in found)
    else:
        grid = False
    if not grid and not complaints and not (config.trials or config.tokens or config.minutes):
        complaints.append("trials, minutes or tokens must be given: when should the sweep end?")
    if complaints:
        raise ConfigError(complaints)
    return found


def shown(values: Any) -> str:
    return values if isinstance(values, str) else as_argument(values)


def read_dimension(name: str, values: Any, known: Mapping[str, Key]) -> Dimension:
    key = known.get(name)
    if key is None:
        raise ValueError(f"no such key{suggestion(f'space.{name}', [f'space.{each}' for each in known])}")
    if key.section and not key.group:
        raise ValueError(f"{name} is a section; search one of its keys")
    if name.startswith("tracking.") or name.rpartition(".")[2] in NOT_SEARCHED:
        why = NOT_SEARCHED.get(name.rpartition(".")[2], "it says where runs are recorded")
        raise ValueError(f"this key isn't searched: {why}")
    if isinstance(values, str) and (found := RANGE.fullmatch(values.strip())):
        return range_of(key, found)
    if isinstance(values, str):
        values = yaml.load(values, TypedLoader) if values.lstrip().startswith("[") else values.split(",")
    listed = [as_argument(value).strip() for value in (values if isinstance(values, list) else [values])]
    if "" in listed or len(set(listed)) < 2:
        raise ValueError(f"there is nothing to search; {GRAMMAR}, or give {name}=VALUE to all trials")
    return Dimension(name, tuple(dict.fromkeys(listed)))


def range_of(key: Key, found: re.Match[str]) -> Dimension:
    log, count = bool(found[1]), int(found[4] or 0)
    kinds = typing.get_args(key.type) if isinstance(key.type, types.UnionType) else (key.type,)
    if not {int, float} & set(kinds):
        raise ValueError("a range is for a number; give this key's values as a list")
    low, high = float(found[2]), float(found[3])
    if not low < high < math.inf:
        raise ValueError("a range goes from the smaller number to the larger")
    if log and low <= 0:
        raise ValueError("a logarithmic range begins above 0")
    whole = float not in kinds
    if whole and not (low.is_integer() and high.is_integer()):
        raise ValueError("this key takes whole numbers")
    if not found[4]:
        return Dimension(key.name, low=low, high=high, log=log, whole=whole)
    if not 2 <= count <= 1000:
        raise ValueError(f"in {count}: give 2 to 1000 values")
    ends = Dimension(key.name, low=low, high=high, log=log, whole=whole)
    return Dimension(key.name, tuple(dict.fromkeys(ends.typed(number) for number in spread(low, high, count, log))))


def spread(low: float, high: float, count: int, log: bool) -> Iterator[float]:
    """So many numbers from low to high, evenly spaced or in equal ratios."""
    for index in range(count):
        share = index / (count - 1)
        yield low * (high / low) ** share if log else low + (high - low) * share


def arguments_of(config: SweepConfig, values: Mapping[str, str] = types.MappingProxyType({})) -> list[str]:
    """What the stage is called with: its own keys, then a trial's values.

    A measure of texts is there only where checkpoints are chosen by one: by the sweep's, if nothing else is said.
    """
    key = f"finetune.{SELECT_BY}" if config.stage == "main" else SELECT_BY
    chosen = [argument for argument in (*config.given, *config.space) if argument.startswith(key)]
    measure = config.metric.removeprefix("val/")
    select = [f"{key}={measure}"] if measure in ALL_MEASURES and not chosen else []
    seed = [f"seed={config.seed}"] if config.seed != SweepConfig.seed else []
    return [*config.given, *select, *seed, *(f"{key}={value}" for key, value in values.items())]


def check_space(config: SweepConfig) -> tuple[list[Dimension], list[Values]]:
    """The dimensions, and combinations that the stage takes in which each value (each end of a range) is found.

    Raises ConfigError for what the stage refuses: with each value, or with every combination that a value is in.
    """
    dimensions = read_space(config)
    for argument in config.given:
        name = argument.partition("=")[0]
        if (last := name.rpartition(".")[2]) in NOT_SEARCHED and not (last == "seed" and name != "seed"):
            raise ConfigError([f"{name}: not for the trials of a sweep: {NOT_SEARCHED[last]}"])
    taken: list[Values] = []
    complaints: dict[str, None] = {}
    for dimension in dimensions:
        for value in dimension.ends:
            if any(combination[dimension.key] == value for combination in taken):
                continue
            try:
                taken.append(usable(config, dimensions, dimension.key, value))
            except ConfigError as error:
                complaints |= dict.fromkeys(error.complaints)
    if complaints:
        raise ConfigError(list(complaints))
    return dimensions, taken


def require_measured(config: SweepConfig, stage: Any) -> None:
    """ConfigError for a metric that a trial of this configuration doesn't have."""
    name, prefix = config.metric.partition("/")[2], "finetune." if config.stage == "main" else ""
    training = stage.finetune if prefix else stage
    texts = [training.train.text_metric, *training.task.metrics] if training.train.text_metric else []
    by_source = [f"{one.label}/{each}" for one in training.data.mix for each in BY_SOURCE]
    known = [*VALIDATED, *by_source, *(score for metric in texts for score in MEASURES.get(metric, ()))]
    if name in known:
        return
    metric = next((metric for metric, names in MEASURES.items() if name in names), None)
    instead = f"give {prefix}{SELECT_BY}={name}" if metric else f"there is {', '.join(f'val/{one}' for one in known)}"
    raise ConfigError([f"metric={config.metric} isn't measured by these trials{suggestion(name, known)}; {instead}"])


def usable(config: SweepConfig, dimensions: Sequence[Dimension], key: str, value: str) -> Values:
    """A combination with this value that the stage takes; ConfigError, of the first one, where none is found."""
    others = [(value,) if dimension.key == key else dimension.ends for dimension in dimensions]
    first: ConfigError | None = None
    for chosen in islice(product(*others), TRIED):
        combination = {dimension.key: one for dimension, one in zip(dimensions, chosen, strict=True)}
        try:
            require_measured(config, load_config(config.stage, arguments_of(config, combination)))
            return combination
        except ConfigError as error:
            first = first or error
    assert first
    raise first


def sweep_instead(stage: str, arguments: Sequence[str], complaints: Sequence[str]) -> str | None:
    """The sweep that somebody may have meant who gave several values to a key, as a command; None where nobody did."""
    if stage not in ("finetune", "pretrain", "main"):
        return None
    typed = {key: value for key, value, _ in parse_arguments(arguments, [])}
    searched = [
        f"{key}={value}"
        for key, value in typed.items()
        if "," in value
        and key.rpartition(".")[2] not in NOT_SEARCHED
        and any(complaint.startswith(f"{key}={value} ") for complaint in complaints)
    ]
    if not searched:
        return None
    words = [f"stage={stage}", *(f"space.{one}" for one in searched)]
    words += [argument for key, value in typed.items() if (argument := f"{key}={value}") not in searched]
    return shlex.join(["python", "-m", "pipelines.sweep", *words])
