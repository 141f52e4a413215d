"""The pictures of a sweep, each as a figure of its run and as part of its page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from ...config.sweeps.space import Dimension
from ..report.charts import SERIES, SOFT, drawing
from ..report.figures import panel
from .trial_outcome import Outcome

if TYPE_CHECKING:
    from .sweep_result import SweepResult

BEST, OTHERS = SERIES[0], SERIES[1]
WIDE = 30
"""Values whose largest is so many times the smallest are shown on a logarithmic axis."""


@dataclass(frozen=True)
class Chart:
    title: str
    draw: Callable[[Axes], None] | None
    """None where there is nothing to show."""

    def figure(self) -> Figure | None:
        if not self.draw:
            return None
        figure, axes = panel(3.6, title=self.title)
        self.draw(axes)
        return figure

    def svg(self) -> Markup:
        return drawing(self.draw, self.title) if self.draw else Markup("")


def progress_chart(result: SweepResult) -> Chart:
    """Each trial's score, and the best up to then."""

    def draw(axes: Axes) -> None:
        finished = sorted(result.ranked, key=lambda one: one.number)
        numbers, values = [one.number for one in finished], values_of(finished)
        best = (np.maximum if result.goal == "maximize" else np.minimum).accumulate(values)
        axes.step(numbers, best, color=BEST, where="post", linewidth=1.8, label="best so far")
        scatter(axes, numbers, values, result)
        axes.set(xlabel="trial")

    return Chart(f"{result.metric} of each trial", draw)


def response_chart(result: SweepResult, dimension: Dimension) -> Chart:
    """The score over one key's values, whatever the others had."""
    title = f"{result.metric} by {dimension.key}"
    if len({one.values[dimension.key] for one in result.ranked}) < 2:
        return Chart(title, None)

    def draw(axes: Axes) -> None:
        texts = [one.values[dimension.key] for one in result.ranked]
        places, names, log = positions(dimension, texts)
        scatter(axes, places, values_of(result.ranked), result)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        if names:
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set(xlabel=dimension.key)

    return Chart(title, draw)


def parallel_chart(result: SweepResult) -> Chart:
    """A line a finished trial through its values, to its score; the best one on top, the best third in colour."""
    if len(result.ranked) < 2:
        return Chart("Which values go with which score", None)

    def draw(axes: Axes) -> None:
        columns, ends = [], []
        for dimension in result.dimensions:
            places, names, log = positions(dimension, [one.values[dimension.key] for one in result.ranked])
            column = np.log(places) if log else np.array(places, float)
            low, high = column.min(), column.max()
            columns.append((column - low) / ((high - low) or 1.0))
            ends.append((names[0], names[-1]) if names else (f"{min(places):g}", f"{max(places):g}"))
        values = values_of(result.ranked)
        low, high = within(values, result.goal)
        columns.append((np.clip(values, low, high) - low) / ((high - low) or 1.0))
        ends.append((f"{low:.4g}", f"{high:.4g}"))
        for rank, line in reversed(list(enumerate(np.stack(columns, 1)))):
            third = rank < max(1, len(values) // 3)
            color = BEST if rank == 0 else OTHERS if third else SOFT
            axes.plot(
                line,
                color=color,
                alpha=1.0 if rank == 0 else 0.75 if third else 0.3,
                linewidth=2.2 if rank == 0 else 1.2,
            )
        names = [dimension.key.rpartition(".")[2] for dimension in result.dimensions]
        for place, (below, above) in enumerate(ends):
            axes.axvline(place, color=SOFT, linewidth=0.6)
            axes.text(place, -0.04, below, ha="center", va="top", color=SOFT, fontsize=9)
            axes.text(place, 1.04, above, ha="center", va="bottom", color=SOFT, fontsize=9)
        axes.set_xticks(range(len(ends)), [*names, result.metric])
        axes.tick_params("x", pad=12)
        axes.set(ylim=(-0.12, 1.14), yticks=[], xlim=(-0.35, len(ends) - 0.65))

    return Chart("Which values go with which score", draw)


def importance_chart(result: SweepResult) -> Chart:
    """How much each key decides whether a trial is among the best."""
    if not result.importances:
        return Chart("Importance", None)

    def draw(axes: Axes) -> None:
        shares = list(result.importances.items())[::-1]
        for place, (name, share) in enumerate(shares):
            axes.barh(place, share, 0.4, color=OTHERS)
            axes.text(0, place + 0.26, f"{name}  {share:.0%}", va="bottom", color=SOFT)
        axes.set(xlabel="share of importance", xlim=(0, 1), ylim=(-0.5, len(shares)), yticks=[])

    return Chart("Importance", draw)


def values_of(outcomes: Sequence[Outcome]) -> np.ndarray:
    return np.array([one.value for one in outcomes], np.float64)


def positions(dimension: Dimension, texts: Sequence[str]) -> tuple[list[float], list[str], bool]:
    """(where each value is on its axis, names of the places if they are no numbers, whether the axis is logarithmic)"""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        names = [name for name in dimension.values if name in texts]
        return [float(names.index(text)) for text in texts], names, False
    log = min(numbers) > 0 and (dimension.log or max(numbers) / min(numbers) >= WIDE)
    return numbers, [], log


def within(values: np.ndarray, goal: str) -> tuple[float, float]:
    """The ends of the score's axis: a trial that went wrong must not press the others flat."""
    sign = -1 if goal == "maximize" else 1
    best, middle, worst = (sign * values).min(), np.median(sign * values), (sign * values).max()
    worst = min(worst, middle + 3 * (middle - best)) if middle > best else worst
    low, high = sorted((float(sign * best), float(sign * worst)))
    return low, high


def scatter(axes: Axes, x: Sequence[float], values: np.ndarray, result: SweepResult) -> None:
    """A point a trial, the best in another colour; what is beyond the axis stands at its end as a triangle."""
    low, high = within(values, result.goal)
    best = result.best.value
    for place, value in zip(x, values, strict=True):
        marker = "o" if low <= value <= high else "^" if value > high else "v"
        color = BEST if value == best else OTHERS
        axes.plot(place, min(max(value, low), high), marker, color=color, markersize=7 if value == best else 5)
    room = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    if math.isfinite(low) and math.isfinite(high):
        axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
