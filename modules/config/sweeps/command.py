"""The keys of a sweep, and which of the arguments that it is given are its own and which the stage's."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ...system.bounded_read import read_plain_yaml
from ...system.paths import expanded
from ..assignments import parse_arguments
from ..base import PATH, ConfigError, StageConfig, not_positive, too_small
from ..evaluation import MEASURES
from ..training import VALIDATED

READY = Path(__file__).parents[3] / "conf" / "sweep"
"""Sweeps that can be given by name."""

LOWER_IS_BETTER = re.compile(
    r"loss|perplexity|nll|error|repetition|early|floor|cut|copied|copies|lost|unknown|unk|skipped"
)
HIGHER_IS_BETTER = re.compile(
    r"bleu|rouge|accuracy|exact|f1|rhyme|form|regulated|quatrain|distinct|found|tone|stopped|chrf"
)


@dataclass
class SweepConfig(StageConfig):
    """The same stage with different values of some keys. Any other key is the stage's: train.max_steps=200."""

    sweep: str | None = None
    """A sweep by name (lr: finds a learning rate), or a YAML file with keys of the sweep and of the stage."""
    stage: Literal["finetune", "pretrain", "main"] = "finetune"
    """What each trial runs; of main the stages up to finetune, whose keys begin with finetune."""
    space: dict[str, Any] = field(default_factory=dict)
    """Key of the stage → its values: a list (8,16), a range (0..0.3), on a logarithmic scale (log 1e-5..1e-2), or so
    many values of a range (log 1e-5..1e-2 in 7)."""
    metric: str = "val/loss"
    """What trials are judged by: a validation metric, of the checkpoint that is kept."""
    direction: Literal["minimize", "maximize"] | None = None
    """Whether lower or higher is better; unset: as the metric's name says."""
    method: Literal["grid", "random", "tpe"] | None = None
    """grid: every combination; random; tpe: where earlier trials did well (Optuna). Unset: grid for lists, else tpe."""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """Stops trials early, at a validation: median: those worse than the median of the others at that point;
    hyperband: those that aren't among the best third at 1, 3, 9 … validations."""
    trials: int | None = None
    """The most trials, failed ones too; unset: with grid all of it."""
    tokens: int | None = None
    """No trial starts once so many tokens have been trained on."""
    minutes: float | None = None
    """No trial starts once the sweep has run for so long, all its processes together."""
    workers: int = 1
    """Trials at the same time, each in a process: on GPUs each has one of its own, on a CPU they share the cores."""
    keep_models: int = 1
    """Trials whose folders stay, the best ones; -1: all."""
    confirm_seeds: int = 3
    """Seeds that the best trial and the next are trained with again, for a test whether they differ; 0: none."""
    output_dir: str | None = field(default=None, metadata=PATH)
    """Folder of the sweep; unset: outputs/sweep-DIGEST, the same for the same stage, space, metric and keys."""
    given: list[str] = field(default_factory=list)
    """The stage's own keys, as key=value; those on the command line go here by themselves."""

    @classmethod
    def own_arguments(cls, arguments: Sequence[str]) -> list[str]:
        """The sweep's arguments, with the stage's in `given`; those of a sweep by name or file come first."""
        complaints: list[str] = []
        typed = [(key, value) for key, value, _ in parse_arguments(arguments, complaints)]
        own: list[str] = []
        stages: list[str] = []
        for key, value in [*from_files(typed, complaints), *typed]:
            if key == "config":
                continue
            if key == "given":
                stages += yaml.load(value, yaml.BaseLoader) or []
                continue
            (own if key.partition(".")[0] in OWN else stages).append(f"{key}={value}")
        if complaints:
            raise ConfigError(complaints)
        return [*own, f"given={as_argument(stages)}"] if stages else own

    @property
    def goal(self) -> str | None:
        """minimize or maximize; None where neither the key nor the metric's name says it."""
        name = self.metric.rpartition("/")[2].lower()
        lower, higher = LOWER_IS_BETTER.search(name), HIGHER_IS_BETTER.search(name)
        by_name = None if bool(lower) == bool(higher) else "minimize" if lower else "maximize"
        return self.direction or by_name

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        yield from too_small(self, 1, "trials", "tokens", "workers")
        yield from too_small(self, 0, "confirm_seeds")
        yield from too_small(self, -1, "keep_models")
        yield from not_positive(self, "minutes")
        if self.keep_models == 0:
            yield "keep_models=0: the best trial's folder stays; give 1, or -1 for all"
        if not self.metric.startswith("val/") or self.metric == "val/":
            last = self.metric.rpartition("/")[2]
            hint = f"did you mean val/{last}?" if last in (*VALIDATED, *ALL_MEASURES) else "e.g. val/loss"
            yield f"metric={self.metric}: with stage={self.stage} it is a val/… metric; {hint}"
        elif self.goal is None:
            yield f"metric={self.metric}: its name doesn't tell which is better; give direction=minimize or maximize"


ALL_MEASURES = [name for names in MEASURES.values() for name in names]

OWN = {entry.name for entry in dataclasses.fields(SweepConfig)}


def from_files(typed: Sequence[tuple[str, str]], complaints: list[str]) -> Iterator[tuple[str, str]]:
    """What the files say that sweep= and config= name."""
    for name, value in typed:
        if name not in ("sweep", "config") or value == "null":
            continue
        is_file = name == "config" or value.endswith((".yaml", ".yml"))
        path = Path(expanded(value)) if is_file else READY / f"{value}.yaml"
        if name == "sweep" and not path.is_file():
            ready = ", ".join(sorted(found.stem for found in READY.glob("*.yaml")))
            complaints.append(f"sweep={value}: no such file or name; must be one of {ready}, or a YAML file's path")
            continue
        try:
            content = read_plain_yaml(path)
        except (OSError, ValueError) as error:
            complaints.append(f"config file {error}" if str(path) in str(error) else f"config file {path}: {error}")
            continue
        if isinstance(content, dict):
            yield from as_arguments(content)
        else:
            complaints.append(f"config file {path} must hold `key: value` lines")


def as_arguments(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested keys of a file → dotted keys, and their values as they would be typed."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and key != "space":
            yield from as_arguments(value, f"{key}.")
        else:
            yield key, as_argument(value)


def as_argument(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
