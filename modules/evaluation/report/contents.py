"""What a report holds, as plain data; a section without content is left out."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..statistics import Metric, PairedComparison, cost, intervals

Series = Sequence[tuple[int, float]]
"""(step, value)"""


@dataclass(frozen=True)
class Column:
    """A model, or what stands beside it: a baseline, the champion, an n-gram floor."""

    name: str
    metrics: Sequence[Metric]


@dataclass(frozen=True)
class Example:
    """A row and what the model made of it."""

    source: str
    score: float
    """nan: the row has none, and is neither among the best nor the worst."""
    text: str | None = None
    """What was generated, without the prompt; None where nothing was."""
    reference: str | None = None
    stopped: bool | None = None
    """Whether the model ended the text by itself; None where it isn't known."""


@dataclass(frozen=True)
class Sample:
    prompt: str
    text: str
    stopped: bool | None = None


@dataclass(frozen=True)
class Report:
    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was scored on what, by name; shown on top."""
    model: str = ""
    """The model's name."""
    measure: str = ""
    """The metric that the task is about."""
    columns: Sequence[Column] = ()
    """The model first."""
    comparisons: Mapping[str, Sequence[PairedComparison]] = field(default_factory=dict)
    """Who the model was compared with → a comparison a metric: by the measure, and with other models by all."""
    curves: Mapping[str, Mapping[str, Series]] = field(default_factory=dict)
    """Title of a picture → its lines."""
    lengths: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Whose texts → the characters of each."""
    form: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """Title of a picture → whose texts → value → how many (or what share) have it."""
    examples: Sequence[Example] = ()
    score_name: str = "score"
    """Of the examples."""
    higher_is_better: bool = True
    best: float | None = None
    """As in Metric, like higher_is_better."""
    samples: Sequence[Sample] = ()
    made_by: Mapping[str, str] = field(default_factory=dict)
    """Run, code and versions; shown at the end."""

    @functools.cached_property
    def scores(self) -> dict[str, dict[str, tuple[Metric, float, float]]]:
        """Metric → column → (the metric, low and high of its 95 % interval), in the columns' order."""
        found: dict[str, dict[str, tuple[Metric, float, float]]] = {}
        for column in self.columns:
            for metric, (low, high) in zip(column.metrics, intervals(column.metrics), strict=True):
                found.setdefault(metric.name, {})[column.name] = metric, low, high
        return found

    def ranked(self, count: int) -> tuple[list[Example], list[Example]]:
        """(worst, best) by score, at most `count` of each, none in both."""
        scored = [example for example in self.examples if not math.isnan(example.score)]
        scored.sort(key=lambda example: cost(example.score, self.higher_is_better, self.best), reverse=True)
        count = min(count, (len(scored) + 1) // 2)
        return scored[:count], scored[max(count, len(scored) - count) :][::-1]

    @property
    def stop_share(self) -> tuple[int, int] | None:
        """(texts that ended by themselves, texts); None where it isn't known of any, or is among the scores."""
        if any(metric.name == "end_of_text_rate" for column in self.columns for metric in column.metrics):
            return None
        known = [example.stopped for example in self.examples if example.stopped is not None]
        return (sum(known), len(known)) if known else None


SHOWN_CHARACTERS = 400
"""Of a text, at most."""

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Controls, half characters, and marks that turn the direction of the text around them."""

LABELS = {
    "perplexity_per_char": "Perplexity per character",
    "perplexity": "Perplexity per token",
    "end_of_text_rate": "Ended by itself",
    "bleu": "BLEU",
    "chrf": "chrF",
}


def label(name: str) -> str:
    """end_of_text_rate → Ended by itself, rougeL → ROUGE-L, slot_error_rate → Slot error rate."""
    if known := LABELS.get(name):
        return known
    words = re.sub(r"^(bleu|rouge)[_-]?", lambda found: found[1].upper() + "-", name).replace("_", " ")
    return words[:1].upper() + words[1:]


def readable(text: str) -> str:
    """A text for the page: cut where it is long, and without invisible characters."""
    clean = UNPRINTABLE.sub("�", text)
    return clean if len(clean) <= SHOWN_CHARACTERS else f"{clean[:SHOWN_CHARACTERS]}…"


def number(value: float) -> str:
    """Four figures at most, with a comma at thousands: 0.0123, 23.46, 239.1, 1,439."""
    if math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e7 or size < 1e-4:
        return f"{value:.2e}".replace("-", "−")
    decimals = max(0, 3 - math.floor(math.log10(size)))
    return f"{value:,.{min(decimals, 4)}f}".replace("-", "−")
