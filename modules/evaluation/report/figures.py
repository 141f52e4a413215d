"""Pictures of a run, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    """Training and validation loss over optimizer steps."""
    figure, axes = panel(4, title=title, xlabel="optimizer step", ylabel="loss (nats a token)")
    draw_series(axes, {"train": history.get("train/loss", ()), "validation": history.get("val/loss", ())})
    if axes.lines:
        axes.legend()
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


def perplexity_bars(scores: Mapping[str, float], title: str) -> Figure:
    """Perplexity per character of models and baselines, in the order given, on a logarithmic axis."""
    label = "perplexity per character (lower is better)"
    figure, axes = panel(0.6 + 0.5 * len(scores), title=title, xlabel=label, xscale="log")
    axes.grid(False)
    names = list(scores)[::-1]
    axes.bar_label(axes.barh(names, [scores[name] for name in names], color="tab:blue"), fmt="%.0f", padding=3)
    return figure


def interval_bars(scores: Mapping[str, tuple[float, float, float]], xlabel: str) -> Figure:
    """Who → (value, low, high): points with their intervals, in the order given."""
    figure, axes = panel(0.8 + 0.4 * len(scores), xlabel=f"{xlabel}, with 95 % intervals")
    axes.grid(False, axis="y")
    for name, (value, low, high) in reversed(list(scores.items())):
        axes.errorbar(value, name, xerr=[[value - low], [high - value]], fmt="o", color="tab:blue", capsize=4)
    axes.margins(y=0.3)
    return figure


def histogram(values: Mapping[str, Sequence[float] | np.ndarray], xlabel: str, title: str, log: bool = False) -> Figure:
    """How many rows of each set have which value; log: on a logarithmic axis, for values above 0."""
    figure, axes = panel(3.2, title=title, xlabel=xlabel, ylabel="rows", xscale="log" if log else "linear")
    every = np.concatenate([np.asarray(row, np.float64) for row in values.values()])
    edges = np.geomspace(every.min(), every.max(), 41) if log else np.histogram_bin_edges(every, bins=40)
    for name, row in values.items():
        axes.hist(row, bins=list(edges), alpha=0.55, label=name)
    axes.legend()
    return figure


def points(x: Sequence[float], y: Sequence[float], labels: Mapping[str, str], log: str = "") -> Figure:
    """A point a row or run; labels: title, xlabel, ylabel; log: which axes are logarithmic, x, y or xy."""
    scales = {f"{axis}scale": "log" for axis in log}
    figure, axes = panel(3.2, **labels, **scales)
    axes.scatter(x, y, color="tab:blue", alpha=0.6, edgecolors="none")
    axes.grid(alpha=0.3, which="both")
    return figure


def line(values: Sequence[float], labels: Mapping[str, str], log: bool = False) -> Figure:
    """Values by their rank or number, from 1; labels: title, xlabel, ylabel."""
    scale = "log" if log else "linear"
    figure, axes = panel(3.2, **labels, xscale=scale, yscale=scale)
    axes.plot(range(1, len(values) + 1), values, color="tab:blue")
    return figure
