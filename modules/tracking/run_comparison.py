"""Two runs side by side: the first difference in what they were made from, and the step at which their losses part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config.commands import STAGES, TRAINING_STAGES
from ..config.effects.key_effects import Effect, effect_of
from ..config.training import TrainingConfig
from .run_facts import RunFacts

SECTIONS = ("config", "data", "code", "environment")
"""What is compared, in this order: a difference in one explains differences in those after it."""

MISSING = "(not recorded)"


@dataclass(frozen=True)
class Difference:
    key: str
    one: str
    other: str

    def __str__(self) -> str:
        return f"{self.key}: {self.one} / {self.other}"


@dataclass(frozen=True)
class Parting:
    """Where the losses of two runs part."""

    steps: int
    """How many steps both have logged."""
    bitwise: int | None = None
    """The first step whose losses aren't the same to the last bit; None where all are."""
    beyond: int | None = None
    """The first step whose losses differ by more than the tolerance; None where none do."""
    largest: float = 0.0
    """The largest difference, as a share of the loss."""


@dataclass(frozen=True)
class RunComparison:
    one: RunFacts
    other: RunFacts
    differences: Mapping[str, list[Difference]]
    """Section → what differs and can change a result, in the order of the configuration."""
    parting: Parting
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Metric that both have → the last value of each run."""

    @property
    def first(self) -> tuple[str, Difference] | None:
        """(section, first difference); None where all that was recorded is the same."""
        return next(((section, found[0]) for section in SECTIONS if (found := self.differences[section])), None)


def compare_runs(one: RunFacts, other: RunFacts, tolerance: float = 1e-4) -> RunComparison:
    """What two runs differ in, and where their losses part; rounding may explain `tolerance`, as a share of a loss."""
    differences = {section: differing(getattr(one, section), getattr(other, section)) for section in SECTIONS}
    config = [found for found in differences["config"] if matters(found.key, one, other)]
    stage = [Difference("stage", str(one.stage), str(other.stage))] if one.stage != other.stage else []
    differences["config"] = stage + config
    shared = one.metrics.keys() & other.metrics.keys()
    scored = sorted(name for name in shared if name.startswith(("val/", "test/")))
    names = [*(["train/loss"] if "train/loss" in shared else []), *scored]
    scores = {name: (one.metrics[name], other.metrics[name]) for name in names}
    return RunComparison(one, other, differences, find_parting(one.losses, other.losses, tolerance), scores)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """The keys whose values differ; none where one of the two has recorded nothing at all."""
    if not one or not other:
        return []
    found: dict[str, Difference] = {}
    for key in dict.fromkeys([*one, *other]):
        section = unset_section(key, one, other)
        a, b = stated(section, one), stated(section, other)
        if a != b:
            found[section] = Difference(section, a, b)
    return list(found.values())


def stated(key: str, side: Mapping[str, Any]) -> str:
    """A key's value as text; "given" for a section that has keys of its own."""
    if key in side:
        return str(side[key])
    return "given" if any(name.startswith(f"{key}.") for name in side) else MISSING


def unset_section(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The section that holds a key, where one of the two has the section unset (model: null); else the key itself."""
    parts = key.split(".")
    above = (".".join(parts[:count]) for count in range(1, len(parts)))
    return next((section for section in above if section in one or section in other), key)


def matters(key: str, one: RunFacts, other: RunFacts) -> bool:
    """Whether a key of the configuration can change a result; what training ignores when it resumes can't."""
    ignored = {Effect.NOTHING}
    if one.data and other.data:  # fingerprints tell; and the vocabulary's size follows from the tokenizer
        if key == "model.vocab_size":
            return False
        ignored.add(Effect.CONTENT)
    if one.stage in TRAINING_STAGES and other.stage in TRAINING_STAGES:
        ignored.add(Effect.RECORD)
    return effect_of(STAGES.get(one.stage or "", TrainingConfig))(key) not in ignored


def find_parting(one: Mapping[int, float], other: Mapping[int, float], tolerance: float) -> Parting:
    """Where two series of losses (step → loss) part; two nan are the same."""
    steps = sorted(one.keys() & other.keys())
    pairs = {step: (one[step], other[step]) for step in steps}
    differ = {step: (a, b) for step, (a, b) in pairs.items() if a != b and not (math.isnan(a) and math.isnan(b))}
    apart = {step: abs(a - b) / max(abs(a), abs(b)) for step, (a, b) in differ.items()}
    beyond = next((step for step, found in apart.items() if not found <= tolerance), None)
    return Parting(len(steps), next(iter(apart), None), beyond, max(apart.values(), default=0.0))
