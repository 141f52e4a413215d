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

from ...tracking.tracked_run import TrackedRun
from ..statistics import Metric, PairedComparison
from .charts import bar_chart, length_chart, line_chart, span
from .contents import Report, label, number, readable
from .figures import ticks
from .verdict import outcome, p_value, verdict, verdict_parts

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
    direction: str
    scores: list[Score]
    ticks: list[tuple[float, str]]
    """(where on the line, in percent, value)"""
    best: float | None
    """Where the metric's best value is on the line, in percent, where it has one."""


def html(report: Report) -> str:
    """The whole page. The same report gives the same page."""
    worst, best = report.ranked(SHOWN)
    style = Markup((Path(__file__).parent / "report.css").read_text(encoding="utf-8"))
    lines, found = list(score_lines(report)), list(pictures(report))
    return page_template().render(report=report, style=style, lines=lines, pictures=found, worst=worst, best=best)


def write_page(run: TrackedRun, report: Report, name: str) -> str:
    """Logs the page as an artifact of that name and the verdict as a tag; returns the verdict."""
    run.log_text(html(report), name)
    run.set_tags({"verdict": verdict(report)})
    return verdict(report)


def page_template() -> jinja2.Template:
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    found = jinja2.Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    named = (number, difference, label, readable, p_value, outcome, test_tables, verdict_parts)
    found.filters |= {filter.__name__: filter for filter in named}
    found.tests["finite"] = math.isfinite
    return found.get_template("report.html.j2")


def score_lines(report: Report) -> Iterator[Line]:
    """A line a metric, the measure first, then in the order in which columns bring them."""
    outcomes = {(who, found.name): outcome(found) for who, tests in report.comparisons.items() for found in tests}
    for name, row in sorted(report.scores.items(), key=lambda item: item[0] != report.measure):
        metric = next(iter(row.values()))[0]
        values = [value for of_column, *ends in row.values() for value in (of_column.value, *ends)]
        place = Axis.around(values, metric)
        scores = [
            Score(
                column, each.value, start, end, place(start), place(end) - place(start), place(each.value),
                outcomes.get((column, name)),
            )
            for column, (each, start, end) in row.items()
        ]  # fmt: skip
        best = None if metric.best is None else place(metric.best)
        marks = place.marks() if any(map(math.isfinite, values)) else []
        yield Line(label(name), metric.direction, scores, marks, best)


def test_tables(report: Report) -> Iterator[tuple[str, str, list[tuple[str, PairedComparison]]]]:
    """(title, what the first column holds, rows): who was tested by one metric, then all metrics against each model."""
    model = report.columns[0].name if report.columns else "Model"
    measured = [(who, tests[0]) for who, tests in report.comparisons.items() if len(tests) == 1]
    if len({found.name for _, found in measured}) > 1:
        measured = [(f"{who}: {label(found.name)}", found) for who, found in measured]
    if measured:
        yield f"{model} against each", "against", measured
    for who, tests in report.comparisons.items():
        if len(tests) > 1:
            yield f"{model} against {who}", "metric", [(label(found.name), found) for found in tests]


@dataclass(frozen=True)
class Axis:
    """The line on which a metric's values are drawn."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def around(cls, values: list[float], metric: Metric) -> Axis:
        """Around all finite values, and the best one."""
        known = [value for value in values if math.isfinite(value)] + ([] if metric.best is None else [metric.best])
        if known and not any(known):
            known.append(1.0)  # none is below 0
        logarithmic = metric.is_perplexity and bool(known) and min(known) > 0
        low, high = span([math.log(value) for value in known] if logarithmic else known)
        return cls(low, high, logarithmic)

    def __call__(self, value: float) -> float:
        """Where a value is, in percent of the line; nan for one that isn't finite."""
        if not math.isfinite(value):
            return math.nan
        return 100 * ((math.log(value) if self.logarithmic else value) - self.low) / (self.high - self.low)

    def marks(self) -> list[tuple[float, str]]:
        ends = (math.exp(self.low), math.exp(self.high)) if self.logarithmic else (self.low, self.high)
        return [(self(value), f"{value:,.10g}".replace("-", "−")) for value in ticks(*ends, self.logarithmic)]


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


def difference(value: float) -> str:
    return number(value) if value <= 0 or math.isnan(value) else f"+{number(value)}"
