"""Results as one picture: a panel of bars for each comparison, a panel for each curve."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .measuring import Result
from .scaling import Curve
from .tables import curves

COLUMNS = 2
COLORS = {"moyun": "tab:blue", "limit": "tab:gray"}


def picture(results: Sequence[Result]) -> Figure:
    bars = [result for result in results if result.comparison.part != "scaling"]
    lines = curves(results)
    count = len(bars) + len(lines)
    height = -(-count // COLUMNS)
    figure = Figure(figsize=(8 * COLUMNS, 3.2 * height), layout="constrained")
    panels = figure.subplots(height, COLUMNS, squeeze=False).flatten()
    for panel, result in zip(panels, bars, strict=False):
        draw_bars(panel, result)
    for panel, curve in zip(panels[len(bars) :], lines, strict=False):
        draw_curve(panel, curve)
    for panel in panels[count:]:
        panel.remove()
    return figure


def draw_bars(panel: Axes, result: Result) -> None:
    """Medians, with a whisker from the least to the most."""
    found = [(row.subject, spread) for row in reversed(result.rows) if (spread := result.value(row))]
    names = [name for name, _ in found]
    medians = [spread.median for _, spread in found]
    whiskers = [
        [spread.median - spread.least for _, spread in found],
        [spread.most - spread.median for _, spread in found],
    ]
    colors = [next((c for start, c in COLORS.items() if name.startswith(start)), "tab:orange") for name in names]
    panel.bar_label(panel.barh(names, medians, xerr=whiskers, color=colors, ecolor="black"), fmt="%.3g", padding=3)
    better = "higher" if result.comparison.higher_is_better else "lower"
    panel.set_title(result.comparison.title, fontsize=10)
    panel.set_xlabel(f"{result.comparison.unit} ({better} is better)")
    panel.margins(x=0.15)


def draw_curve(panel: Axes, curve: Curve) -> None:
    """Seconds over cost, beside a line of slope 1 through the first point."""
    first = curve.costs[0], curve.seconds[0]
    panel.loglog(curve.costs, curve.seconds, marker="o", color=COLORS["moyun"], label=f"slope {curve.slope:.2f}")
    straight = [first[1] * cost / first[0] for cost in curve.costs]
    panel.loglog(curve.costs, straight, linestyle=":", color=COLORS["limit"], label="slope 1")
    panel.set_xticks(curve.costs, [str(point) for point in curve.points], minor=False)
    panel.minorticks_off()
    panel.set(title=f"{curve.axis}: {curve.verdict}", xlabel=curve.axis, ylabel="seconds")
    panel.legend()
    panel.grid(alpha=0.3)
