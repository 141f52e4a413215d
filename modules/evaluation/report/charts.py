"""The pictures of a report's page: matplotlib draws, the page's own fonts and colours show.

matplotlib's fonts lack Chinese and its colours are fixed; so text stays text, and each colour becomes a variable of
report.css, which has one for light and one for dark.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from .contents import Series, readable
from .figures import draw_series

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 22, 12, 44
BINS = 24

VARIABLES = {
    "#b3332c": "--s0", "#2f6690": "--s1", "#a9762b": "--s2", "#5e7f4f": "--s3",
    "#6d675e": "--soft", "#e4dfd5": "--rule",
}  # fmt: skip
"""Colour as matplotlib draws it → its name in report.css."""
*SERIES, SOFT, RULE = VARIABLES

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 12.5,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.edgecolor": SOFT, "axes.labelcolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT, "grid.color": RULE,
    "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "axes.xmargin": 0.02, "xtick.major.size": 0, "ytick.major.size": 0, "xtick.major.pad": 6, "axes.labelpad": 5,
}  # fmt: skip


def line_chart(lines: Mapping[str, Series], x_label: str) -> Markup:
    """A line a series; of many steps the mean of each stretch, with the lowest and highest behind it."""
    values = [value for series in lines.values() for value in typical(series)]
    if not values:
        return Markup("")
    low, high = span(values)
    if min(values) >= 0:
        low = max(low, 0.0)

    def draw(axes: Axes) -> None:
        draw_series(axes, lines, (low, high))
        axes.set(xlabel=x_label, ylim=(low, high))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))

    return drawing(draw, readable("".join(lines)))


def typical(series: Series) -> list[float]:
    """Finite values without the first steps' way down, which would press the rest flat where there are many steps."""
    values = [value for _, value in series if math.isfinite(value)]
    return values[len(values) // 50 :]


def length_chart(lengths: Mapping[str, Sequence[int]], x_label: str) -> Markup:
    """Shares of texts by length, one shape a series; the longest 1 % are counted in the last bar."""
    every = np.sort(np.concatenate([[], *lengths.values()]))
    if not len(every):
        return Markup("")
    low, high = every[0], every[min(len(every) - 1, int(len(every) * 0.99))] + 1
    width = max(1, -(-(high - low) // BINS))
    edges = np.arange(low, high + width, width)

    def draw(axes: Axes) -> None:
        for index, values in enumerate(lengths.values()):
            if len(values):
                shares = np.histogram(np.minimum(values, edges[-1] - 1), edges)[0] / len(values)
                color = SERIES[index % len(SERIES)]
                axes.stairs(shares, edges, fill=True, facecolor=to_rgba(color, 0.28), edgecolor=color, linewidth=1.4)
        axes.set(xlabel=x_label)
        percent_axis(axes)

    return drawing(draw)


def bar_chart(counts: Mapping[str, Mapping[str, float]]) -> Markup:
    """Shares of each value, side by side for each series."""
    values = list(dict.fromkeys(value for found in counts.values() for value in found))
    if not any(sum(found.values()) for found in counts.values()):
        return Markup("")
    wide = 0.8 / len(counts)

    def draw(axes: Axes) -> None:
        for index, found in enumerate(counts.values()):
            total = sum(found.values()) or 1
            for place, value in enumerate(values):
                x, share = place + (index + 0.5) * wide - 0.4, found.get(value, 0.0) / total
                (bar,) = axes.bar(x, share, 0.94 * wide, color=SERIES[index % len(SERIES)])
                bar.set_gid(f"{readable(value)}: {share:.1%}")
        every = -(-len(values) // 14)  # so that at most 14 bars have a label
        axes.set_xticks(range(0, len(values), every), [readable(value) for value in values[::every]])
        percent_axis(axes)

    return drawing(draw)


def percent_axis(axes: Axes) -> None:
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if top > 0.04 else 1))


def drawing(draw: Callable[[Axes], None], salt: str = "") -> Markup:
    """The SVG of what `draw` draws, the same each time. `salt` keeps ids of a page's pictures apart."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that matplotlib's fonts lack
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), frameon=False)
        size = (WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - TOP - BOTTOM) / HEIGHT
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, *size))
        axes.patch.set_visible(False)
        for axis, count in ((axes.xaxis, 5), (axes.yaxis, 4)):
            axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
        draw(axes)
        figure.savefig(buffer := io.StringIO(), format="svg", metadata={"Date": None})
    return Markup(inlined(ElementTree.fromstring(buffer.getvalue())))


def inlined(root: ElementTree.Element) -> str:
    """An SVG for a page: coloured by its variables, in its font, without what it defines for a document of its own."""
    for parent in root.iter():
        for child in [child for child in parent if child.tag.endswith(("}metadata", "}style", "}clipPath"))]:
            parent.remove(child)
    for element in root.iter():
        _, _, element.tag = element.tag.rpartition("}")
        given = {name.replace("{http://www.w3.org/1999/xlink}", "xlink:"): value for name, value in element.items()}
        element.attrib = {name: tidied(name, value) for name, value in given.items() if name != "clip-path"}
        if element.tag == "g" and ": " in (name := element.attrib.pop("id", "")):
            ElementTree.SubElement(element, "title").text = name
    root.attrib = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-hidden": "true"}
    return ElementTree.tostring(root, encoding="unicode")


def tidied(name: str, value: str) -> str:
    if name == "style":
        value = re.sub(r"font[\w-]*: [^;]*;? ?", "", value)
        return re.sub("#[0-9a-f]{6}", lambda found: f"var({VARIABLES.get(found[0], '--ink')})", value)
    if name in ("d", "x", "y", "transform"):
        return re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.1f}", " ".join(value.split()))
    return value


def span(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """(low, high) around all finite values, with a margin; (0, 1) where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return low - room, high + room
