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

from ..statistics import PairedComparison
from .charts import bar_chart, length_chart, line_chart, span
from .contents import Report, label, readable

SHOWN = 8
"""Rows each of the worst and the best."""


@dataclass(frozen=True)
class Score:
    """A metric of one column, and where it and its interval are on the line that all columns share."""

    column: str
    value: float
    low: float
    high: float
    start: float
    """Of the interval, in percent of the line, as the next two."""
    width: float
    point: float
    verdict: str | None
    """Of the first column against this one: better, worse, undecided or the same; None where they weren't compared."""


@dataclass(frozen=True)
class Line:
    label: str
    better: str
    scores: list[Score]


def html(report: Report) -> str:
    """The whole page. The same report gives the same page."""
    worst, best = report.ranked(SHOWN)
    style = Markup((Path(__file__).parent / "report.css").read_text(encoding="utf-8"))
    lines, found = list(score_lines(report)), list(pictures(report))
    return page_template().render(report=report, style=style, lines=lines, pictures=found, worst=worst, best=best)


def page_template() -> jinja2.Template:
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    found = jinja2.Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {filter.__name__: filter for filter in (number, difference, label, readable, p_value, verdict)}
    found.tests["finite"] = math.isfinite
    return found.get_template("report.html.j2")


def score_lines(report: Report) -> Iterator[Line]:
    """A line a metric, in the order in which columns bring them."""
    verdicts = {(who, found.name): verdict(found) for who, tests in report.comparisons.items() for found in tests}
    for name, row in report.scores.items():
        low, high = span([value for metric, *ends in row.values() for value in (metric.value, *ends)])
        percent = 100 / (high - low)
        scores = [
            Score(
                column, metric.value, start, end, percent * (start - low), percent * (end - start),
                percent * (metric.value - low), verdicts.get((column, name)),
            )
            for column, (metric, start, end) in row.items()
        ]  # fmt: skip
        better = "higher is better" if next(iter(row.values()))[0].higher_is_better else "lower is better"
        yield Line(label(name), better, scores)


@dataclass(frozen=True)
class Picture:
    section: str
    title: str
    svg: Markup
    series: list[str]


def pictures(report: Report) -> Iterator[Picture]:
    """Those that have something to show."""
    charts = {title: line_chart(lines, "optimizer step") for title, lines in report.curves.items()}
    found = [Picture("Training", title, chart, list(report.curves[title])) for title, chart in charts.items()]
    found.append(Picture("Texts", "Length", length_chart(report.lengths, "characters"), list(report.lengths)))
    found += [Picture("Texts", title, bar_chart(counts), list(counts)) for title, counts in report.form.items()]
    return (picture for picture in found if picture.svg)


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


def difference(value: float) -> str:
    return number(value) if value <= 0 or math.isnan(value) else f"+{number(value)}"


def p_value(found: PairedComparison) -> str:
    return "< 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"


def verdict(found: PairedComparison) -> str:
    apart = found.difference != 0 or abs(found.low) > 0 or abs(found.high) > 0
    return found.verdict if apart else "the same"
