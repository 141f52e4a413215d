"""Pictures of a run, as matplotlib figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from .contents import Series

POINTS = 240
"""Of a line: more can't be told apart."""


def panel(height: float, **labels: str) -> tuple[Figure, Axes]:
    """An empty figure of that height in inches; labels: title, xlabel, ylabel, xscale, yscale."""
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    axes.set(**labels)
    axes.grid(alpha=0.3)
    return figure, axes


def loss_curve(history: Mapping[str, Series], title: str) -> Figure:
    """Training and validation loss over optimizer steps; on a logarithmic axis where the loss spans a decade."""
    figure, axes = panel(4, title=title, xlabel="optimizer step", ylabel="loss (nats a token)")
    train, validation = history.get("train/loss", ()), history.get("val/loss", ())
    known = [point for point in validation if np.isfinite(point[1])]
    step, lowest = min(known, key=lambda point: point[1], default=(0, 0.0))
    name = f"validation, lowest {lowest:.4g} at step {step:,}" if known else "validation"
    draw_series(axes, {"training": train, name: validation})
    if validation and axes.lines:
        axes.lines[-1].set(marker="o", markersize=5 if len(validation) <= 40 else 3)
    if axes.lines:
        axes.legend()
    values = [value for _, value in (*train, *known) if np.isfinite(value)]
    if values and 0 < 10 * min(values) < max(values):
        axes.set_yscale("log")
        mark_logarithmic(axes)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return figure


def draw_series(axes: Axes, lines: Mapping[str, Series], limits: tuple[float, float] = (-np.inf, np.inf)) -> None:
    """A line a series: of many steps the mean of each stretch, with the lowest and highest value behind it.

    What is beyond the limits is drawn at them, and what isn't finite not at all.
    """
    for index, (name, series) in enumerate(lines.items()):
        steps, values = np.array([point for point in series if np.isfinite(point[1])], np.float64).reshape(-1, 2).T
        if not len(values):
            continue
        starts = np.arange(0, len(values), -(-len(values) // POINTS))
        sizes = np.diff(starts, append=len(values))
        x, mean = (np.add.reduceat(column, starts) / sizes for column in (steps, values))
        marker = "o" if len(x) <= 40 else None  # more would run into each other
        axes.plot(x, np.clip(mean, *limits), f"C{index}", label=name, marker=marker, markersize=4, linewidth=1.8)
        if len(values) > len(x):
            low, high = (np.clip(of.reduceat(values, starts), *limits) for of in (np.minimum, np.maximum))
            axes.fill_between(x, low, high, color=f"C{index}", alpha=0.18, linewidth=0)


def interval_bars(scores: Mapping[str, tuple[float, float, float]], xlabel: str, log: bool = False) -> Figure:
    """Who → (value, low, high): points with their values and intervals, in the order given; the first stands out.

    log: on a logarithmic axis. Whoever has no value is left out; without an interval there is the point alone.
    """
    shown = {who: score for who, score in scores.items() if np.isfinite(score[0])}
    scale = "log" if log else "linear"
    figure, axes = panel(0.9 + 0.45 * len(shown), xlabel=f"{xlabel}, with 95 % intervals", xscale=scale)
    axes.grid(False, axis="y")
    for place, (name, (value, low, high)) in enumerate(reversed(shown.items()), 1):
        color = "tab:red" if place == len(shown) else "tab:blue"
        ends = None if np.isnan(low) else [[value - low], [high - value]]
        axes.errorbar(value, name, xerr=ends, fmt="o", color=color, capsize=4)
        axes.annotate(f"{value:,.4g}", (value, name), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axes.margins(x=0.08)
    axes.set_ylim(-0.5, max(len(shown), 1) - 0.3)
    mark_logarithmic(axes)
    return figure


def mark_logarithmic(axes: Axes) -> None:
    """Marks logarithmic axes with round numbers, written out; matplotlib would write 2 × 10², or nothing."""
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        if axis.get_scale() == "log":
            values = ticks(*limits, logarithmic=True)
            axis.set_ticks(values, [f"{value:,.10g}" for value in values])
            axis.set_ticks([], minor=True)


def ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Two to five round values within (low, high)."""
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
            if len(found) <= 5:
                break
        if len(found) > 1:
            return found[:: -(-len(found) // 5)]
    values = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(value) for value in values if low <= value <= high]


def points(
    x: Sequence[float], y: Sequence[float], labels: Mapping[str, str], log: str = "", diagonal: str | None = None
) -> Figure:
    """A point a row or run; labels: title, xlabel, ylabel; log: which axes are logarithmic, x, y or xy.

    diagonal: what to call the line on which both values are equal, drawn where it has a name.
    """
    scales = {f"{axis}scale": "log" for axis in log}
    figure, axes = panel(3.6, **labels, **scales)
    axes.scatter(x, y, color="tab:blue", alpha=0.6, edgecolors="none")
    axes.grid(alpha=0.3, which="both")
    mark_logarithmic(axes)
    if diagonal:
        axes.axline((x[0], x[0]), (2 * x[0], 2 * x[0]), color="0.4", linestyle="--", linewidth=1, label=diagonal)
        axes.legend()
    return figure


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    labels: Mapping[str, str],
    log: str = "",
    limits: Mapping[str, float] | None = None,
) -> Figure:
    """Name → (x, y), a line each; labels and log as in `points`. limits: what to call a value of x → that value."""
    figure, axes = panel(3.6, **labels, **{f"{axis}scale": "log" for axis in log})
    for name, (x, y) in series.items():
        axes.plot(x, y, label=name, marker="o" if len(x) <= 40 else None, markersize=5)
    for name, value in (limits or {}).items():
        axes.axvline(value, color="0.4", linestyle="--", linewidth=1, label=name)
    mark_logarithmic(axes)
    if len(series) + len(limits or {}) > 1:
        axes.legend()
    return figure


def cumulative(values: Sequence[float] | np.ndarray) -> tuple[list[float], list[float]]:
    """(x, y) for `lines`: the percentage y of the values that are at most x."""
    found, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    return found.repeat(2)[1:].tolist(), (100 * counts.cumsum() / counts.sum()).repeat(2)[:-1].tolist()
