"""Pictures as SVG text: small, sharp on any screen, and coloured by the page, so that they follow its dark mode.

Hand-made: matplotlib's need a Chinese font on the machine that draws, and have one colour scheme.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup, escape

from .contents import Series, shown

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 34

POINTS = 240
"""Of a line: more can't be told apart at this size."""

BINS = 24


def line_chart(lines: Mapping[str, Series], x_label: str) -> Markup:
    """One line a series: of many steps the mean of each stretch, with the lowest and highest behind it."""
    lines = {name: [point for point in series if math.isfinite(point[1])] for name, series in lines.items()}
    lines = {name: series for name, series in lines.items() if series}
    if not lines:
        return Markup("")
    x_low, x_high = span([step for series in lines.values() for step, _ in series], 0)
    values = [value for series in lines.values() for value in typical(series)]
    y_low, y_high = span(values)
    if min(values) >= 0:
        y_low = max(y_low, 0.0)
    parts = [axes(x_low, x_high, y_low, y_high, x_label)]
    for index, series in enumerate(lines.values()):
        stretches = list(thinned(series))
        xs = [scaled(step, x_low, x_high, LEFT, WIDTH - RIGHT) for step, *_ in stretches]
        low, mean, high = ([height(row[column], y_low, y_high) for row in stretches] for column in (1, 2, 3))
        if len(series) > len(stretches):
            outline = [*zip(xs, high, strict=True), *reversed([*zip(xs, low, strict=True)])]
            parts.append(f'<polygon class="band s{index % 4}" points="{path(outline)}"/>')
        parts.append(f'<polyline class="line s{index % 4}" points="{path(zip(xs, mean, strict=True))}"/>')
        if len(stretches) <= 40:
            parts += [
                f'<circle class="dot s{index % 4}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
                for x, y in zip(xs, mean, strict=True)
            ]
    return drawing(parts)


def typical(series: Series) -> list[float]:
    """Values without the first steps' way down, which would press the rest flat where there are many steps."""
    values = [value for _, value in series]
    return values[len(values) // 50 :]


def thinned(series: Series) -> Iterator[tuple[float, float, float, float]]:
    """(step, lowest, mean, highest) of at most POINTS stretches."""
    size = -(-len(series) // POINTS)
    for start in range(0, len(series), size):
        stretch = series[start : start + size]
        values = [value for _, value in stretch]
        step = sum(step for step, _ in stretch) / len(stretch)
        yield step, min(values), sum(values) / len(values), max(values)


def histogram(lengths: Mapping[str, Sequence[int]], x_label: str) -> Markup:
    """Shares of texts by length, one shape a series; the longest 1 % are counted in the last bar."""
    lengths = {name: values for name, values in lengths.items() if len(values)}
    if not lengths:
        return Markup("")
    every = sorted(value for values in lengths.values() for value in values)
    low, high = every[0], every[min(len(every) - 1, int(len(every) * 0.99))] + 1
    width = max(1, -(-(high - low) // BINS))
    count = -(-(high - low) // width)
    shares = {
        name: binned([min((value - low) // width, count - 1) for value in values], count)
        for name, values in lengths.items()
    }
    top = max(max(found) for found in shares.values())
    right = low + count * width
    parts = [axes(low, right, 0, top * 1.06, x_label, percent=True)]
    for index, found in enumerate(shares.values()):
        corners: list[tuple[float, float]] = [(float(low), 0.0)]
        for number, share in enumerate(found):
            corners += [(low + number * width, share), (low + (number + 1) * width, share)]
        corners.append((float(right), 0.0))
        points = [(scaled(x, low, right, LEFT, WIDTH - RIGHT), height(y, 0, top * 1.06)) for x, y in corners]
        parts.append(f'<polygon class="area s{index % 4}" points="{path(points)}"/>')
    return drawing(parts)


def binned(places: Sequence[int], count: int) -> list[float]:
    found = [0] * count
    for place in places:
        found[place] += 1
    return [number / len(places) for number in found]


def bar_chart(counts: Mapping[str, Mapping[str, float]]) -> Markup:
    """Shares of each value, side by side for each series."""
    counts = {name: found for name, found in counts.items() if sum(found.values()) > 0}
    if not counts:
        return Markup("")
    values = list(dict.fromkeys(value for found in counts.values() for value in found))
    shares = [[found.get(value, 0.0) / sum(found.values()) for value in values] for found in counts.values()]
    top = max(max(found) for found in shares) * 1.08
    parts = [axes(None, None, 0, top, "", percent=True)]
    slot = (WIDTH - LEFT - RIGHT) / len(values)
    wide = min(34.0, slot * 0.8 / len(shares))
    for place, value in enumerate(values):
        middle = LEFT + (place + 0.5) * slot
        for index, found in enumerate(shares):
            x, y = middle + (index - len(shares) / 2) * wide, height(found[place], 0, top)
            parts.append(
                f'<rect class="bar s{index % 4}" x="{x:.1f}" y="{y:.1f}" width="{wide * 0.94:.1f}" '
                f'height="{HEIGHT - BOTTOM - y:.1f}"><title>{escape(shown(value))}: {found[place]:.1%}</title></rect>'
            )
        if len(values) <= 14 or place % -(-len(values) // 14) == 0:
            parts.append(
                f'<text class="tick mid" x="{middle:.1f}" y="{HEIGHT - BOTTOM + 16}">{escape(shown(value))}</text>'
            )
    return drawing(parts)


def axes(
    x_low: float | None, x_high: float | None, y_low: float, y_high: float, x_label: str, percent: bool = False
) -> str:
    parts = []
    for value in ticks(y_low, y_high, 4):
        y = height(value, y_low, y_high)
        label = f"{value:.0%}" if percent and y_high > 0.04 else f"{value:.1%}" if percent else tick_label(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{label}</text>')
    if x_low is not None and x_high is not None:
        for value in ticks(x_low, x_high, 5):
            x = scaled(value, x_low, x_high, LEFT, WIDTH - RIGHT)
            anchor = "end" if x > WIDTH - RIGHT - 20 else "mid"
            parts.append(
                f'<text class="tick {anchor}" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{tick_label(value)}</text>'
            )
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    parts.append(f'<text class="label mid" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}">{escape(x_label)}</text>')
    return "".join(parts)


def scaled(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / ((high - low) or 1.0) * (end - start)


def height(value: float, low: float, high: float) -> float:
    """What is beyond the axis is drawn at its end."""
    return min(max(scaled(value, low, high, HEIGHT - BOTTOM, TOP), TOP), HEIGHT - BOTTOM)


def path(points: Sequence[tuple[float, float]] | Iterator[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def drawing(parts: Sequence[str]) -> Markup:
    """What is in `parts` must be escaped already."""
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-hidden="true">{"".join(parts)}</svg>')


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers, from at or above low to at or below high."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


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
    text = f"{value:,.{min(decimals, 4)}f}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    return number(value) if value <= 0 or math.isnan(value) else f"+{number(value)}"


def tick_label(value: float) -> str:
    return f"{value:,.10g}".replace("-", "−")


def span(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """(low, high) around all finite values, with a margin; (0, 1) where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return low - room, high + room
