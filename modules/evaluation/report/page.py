"""A report as one HTML file that needs nothing else: no script, no font, no picture from anywhere.

Rows are untrusted text: Jinja2 escapes all that it writes, and the page forbids scripts (Content-Security-Policy).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from ..statistics import Metric, PairedComparison, intervals
from .charts import bar_chart, length_chart, line_chart, span
from .contents import Column, Report, label, shown

SHOWN = 8
"""Rows each of the worst and the best."""


@dataclass(frozen=True)
class Score:
    """A metric of one column, and where its interval lies on the line that all columns share."""

    column: str
    value: float
    low: float
    high: float
    start: float
    """Percent, as the next two."""
    width: float
    point: float
    verdict: str | None
    """Against this column the first one is better, worse or undecided; None where they weren't compared."""


@dataclass(frozen=True)
class Line:
    label: str
    better: str
    scores: list[Score]


def html(report: Report) -> str:
    """The whole page. The same report gives the same page."""
    worst, best = report.ranked(SHOWN)
    page: str = (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            style=Markup((Path(__file__).parent / "report.css").read_text(encoding="utf-8")),
            lines=list(score_lines(report)),
            pictures=list(pictures(report)),
            worst=worst,
            best=best,
        )
    )
    return page


def environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "number": number,
        "signed": signed,
        "label": label,
        "shown": shown,
        "chance": chance,
        "verdict": verdict,
    }
    found.tests["finite"] = math.isfinite
    return found


def score_lines(report: Report) -> Iterator[Line]:
    """A line a metric, in the order in which columns bring them."""
    names = dict.fromkeys(metric.name for column in report.columns for metric in column.metrics)
    verdicts = {
        (against, found.name): verdict(found)
        for against, comparisons in report.comparisons.items()
        for found in comparisons
    }
    found = [dict(zip(names_of(column), intervals(column.metrics), strict=True)) for column in report.columns]
    for name in names:
        having = [
            (column.name, metric, ends[name])
            for column, ends in zip(report.columns, found, strict=True)
            for metric in column.metrics
            if metric.name == name
        ]
        low, high = span([value for _, metric, ends in having for value in (*ends, metric.value)])
        scores = [
            place(column, metric, ends, low, high, verdicts.get((column, name))) for column, metric, ends in having
        ]
        better = "higher is better" if having[0][1].higher_is_better else "lower is better"
        yield Line(label(name), better, scores)


def names_of(column: Column) -> list[str]:
    return [metric.name for metric in column.metrics]


def place(
    column: str, metric: Metric, interval: tuple[float, float], low: float, high: float, verdict: str | None
) -> Score:
    at = [100 * (value - low) / (high - low) if math.isfinite(value) else math.nan for value in interval]
    point = 100 * (metric.value - low) / (high - low) if math.isfinite(metric.value) else math.nan
    return Score(column, metric.value, *interval, at[0], at[1] - at[0], point, verdict)


@dataclass(frozen=True)
class Picture:
    section: str
    title: str
    svg: Markup
    series: list[str]


def pictures(report: Report) -> Iterator[Picture]:
    """Those that have something to show."""
    for title, lines in report.curves.items():
        yield from picture("Training", title, line_chart(lines, "optimizer step"), list(lines))
    if report.lengths:
        series = list(report.lengths)
        yield from picture("Texts", "Length", length_chart(report.lengths, "characters"), series)
    for title, counts in report.form.items():
        yield from picture("Texts", title, bar_chart(counts), list(counts))


def picture(section: str, title: str, svg: Markup, series: list[str]) -> Iterator[Picture]:
    if svg:
        yield Picture(section, title, svg, series)


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


def signed(value: float) -> str:
    return number(value) if value <= 0 or math.isnan(value) else f"+{number(value)}"


def chance(found: PairedComparison) -> str:
    return "< 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"


def verdict(found: PairedComparison) -> str:
    apart = found.difference != 0 or abs(found.low) > 0 or abs(found.high) > 0
    return found.verdict if apart else "the same"
