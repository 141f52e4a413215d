"""Pictures of a run, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

Series = Sequence[tuple[int, float]]
"""(step, value)"""


def loss_curve(history: Mapping[str, Series], title: str) -> Figure:
    """Training loss (thin: each step; thick: a running mean) and validation loss over optimizer steps."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    train = history.get("train/loss", [])
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
        axes.plot(steps, running_mean(losses, max(1, len(losses) // 50)), color="tab:blue", label="train")
    validation = history.get("val/loss", [])
    if validation:
        axes.plot(*zip(*validation, strict=True), color="tab:orange", marker="o", label="validation")
    axes.set(title=title, xlabel="optimizer step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    if train or validation:
        axes.legend()
    return figure


def perplexity_bars(scores: Mapping[str, float], title: str) -> Figure:
    """Perplexity per character of models and floors, lowest best, on a logarithmic axis."""
    figure = Figure(figsize=(7, 0.6 + 0.5 * len(scores)), layout="constrained")
    axes = figure.subplots()
    names = list(scores)[::-1]
    bars = axes.barh(names, [scores[name] for name in names], color="tab:blue")
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(title=title, xlabel="perplexity per character (lower is better)", xscale="log")
    return figure


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and up to width - 1 before it."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - width] if index >= width else 0.0)
        means.append(total / min(index + 1, width))
    return means


def interval_bars(scores: Mapping[str, tuple[float, float, float]], xlabel: str) -> Figure:
    """Who → (value, low, high): points with their intervals, in the order given."""
    figure = Figure(figsize=(7, 0.8 + 0.4 * len(scores)), layout="constrained")
    axes = figure.subplots()
    for name, (value, low, high) in reversed(list(scores.items())):
        axes.errorbar(value, name, xerr=[[value - low], [high - value]], fmt="o", color="tab:blue", capsize=4)
    axes.set(xlabel=f"{xlabel}, with 95 % intervals")
    axes.grid(axis="x", alpha=0.3)
    axes.margins(y=0.3)
    return figure


def histogram(values: Mapping[str, Sequence[float] | np.ndarray], xlabel: str, title: str, log: bool = False) -> Figure:
    """How many rows of each set have which value; log: of a logarithmic axis, for values above 0."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    every = np.concatenate([np.asarray(row, np.float64) for row in values.values()])
    edges = np.geomspace(every.min(), every.max(), 41) if log else np.histogram_bin_edges(every, bins=40)
    for name, row in values.items():
        axes.hist(row, bins=list(edges), alpha=0.55, label=name)
    axes.set(title=title, xlabel=xlabel, ylabel="rows", xscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def points(x: Sequence[float], y: Sequence[float], labels: Mapping[str, str], log: str = "") -> Figure:
    """A point a row or run; labels: title, xlabel, ylabel; log: which axes are logarithmic, x, y or xy."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.scatter(x, y, color="tab:blue", alpha=0.6, edgecolors="none")
    axes.set(xscale="log" if "x" in log else "linear", yscale="log" if "y" in log else "linear", **labels)
    axes.grid(alpha=0.3, which="both")
    return figure


def line(values: Sequence[float], labels: Mapping[str, str], log: bool = False) -> Figure:
    """Values by their rank or number, from 1; labels: title, xlabel, ylabel."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(values) + 1), values, color="tab:blue")
    scale = "log" if log else "linear"
    axes.set(xscale=scale, yscale=scale, **labels)
    axes.grid(alpha=0.3)
    return figure
