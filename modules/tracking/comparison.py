"""Two runs side by side: the first difference in what they were made from, and the step at which their losses part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..training.run_manifest import CONTENT_KEYS, IGNORED_KEYS
from .run_facts import RunFacts

SECTIONS = ("config", "data", "code", "environment")
"""In the order in which they are looked at: what comes first explains what comes after."""

NO_MATTER = ("output_dir", "dry_run", "tracking.", "train.resume_from", "train.allow_changed", "trainer.progress_bar")
"""Keys that change no number of any stage."""

TRAINING = ("pretrain", "finetune")
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
    """Where two series of losses part."""

    steps: int
    """That both have."""
    bitwise: int | None = None
    """The first step whose losses aren't the same to the last bit; None: all are."""
    beyond: int | None = None
    """The first step at which they differ by more than the tolerance."""
    largest: float = 0.0
    """The largest difference, as a share of the loss."""


@dataclass(frozen=True)
class RunComparison:
    one: RunFacts
    other: RunFacts
    differences: Mapping[str, list[Difference]]
    """Section → all that differs and may matter, in the order of the configuration."""
    parting: Parting
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Metric that both have → its last values."""

    @property
    def first(self) -> tuple[str, Difference] | None:
        """(section, what differs); None where nothing that was recorded does."""
        return next(((section, found[0]) for section in SECTIONS if (found := self.differences[section])), None)


def compare_runs(one: RunFacts, other: RunFacts, tolerance: float = 1e-4) -> RunComparison:
    """tolerance: a difference between losses, as a share of them, that rounding alone may come to."""
    differences = {section: differing(getattr(one, section), getattr(other, section)) for section in SECTIONS}
    config = [found for found in differences["config"] if matters(found.key, one, other)]
    stage = [Difference("stage", str(one.stage), str(other.stage))] if one.stage != other.stage else []
    differences["config"] = stage + config
    scored = [name for name in one.metrics if name in other.metrics and name.startswith(("val/", "test/"))]
    names = [*(["train/loss"] if "train/loss" in one.metrics.keys() & other.metrics.keys() else []), *sorted(scored)]
    scores = {name: (one.metrics[name], other.metrics[name]) for name in names}
    return RunComparison(one, other, differences, parting(one.losses, other.losses, tolerance), scores)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """Nothing where either side has recorded nothing at all."""
    if not one or not other:
        return []
    found: dict[str, Difference] = {}
    for key in dict.fromkeys([*one, *other]):
        section = unset_section(key, one, other)
        a, b = (stated(section, side) for side in (one, other))
        if a != b:
            found[section] = Difference(section, a, b)
    return list(found.values())


def stated(key: str, side: Mapping[str, Any]) -> str:
    if key in side:
        return str(side[key])
    return "given" if any(name.startswith(f"{key}.") for name in side) else MISSING


def unset_section(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The section that a key is in where one side has none of it (model: null); else the key itself."""
    parts = key.split(".")
    above = (".".join(parts[:count]) for count in range(1, len(parts)))
    return next((section for section in above if section in one or section in other), key)


def matters(key: str, one: RunFacts, other: RunFacts) -> bool:
    """Places don't where fingerprints tell what was found there; nor, in training, what changes nothing learnt."""
    if key.startswith(NO_MATTER):
        return False
    hashed = bool(one.data) and bool(other.data)
    if hashed and key.startswith(
        (*CONTENT_KEYS, "train.init_from", "model.vocab_size")
    ):  # which follows from the tokenizer
        return False
    return not (one.stage in TRAINING and other.stage in TRAINING and key.startswith(IGNORED_KEYS))


def parting(one: Mapping[int, float], other: Mapping[int, float], tolerance: float) -> Parting:
    steps = sorted(one.keys() & other.keys())
    apart = {step: share(one[step], other[step]) for step in steps if not same(one[step], other[step])}
    return Parting(
        len(steps),
        next(iter(apart), None),
        next((step for step, found in apart.items() if not found <= tolerance), None),
        max(apart.values(), default=0.0),
    )


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def share(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), abs(other))
