"""Axes: round numbers to mark, and numbers as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Sequence


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
