"""Results as Markdown tables, as plain data, and in a document of one's own between marks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .measuring import Result, Row, Spread
from .planned_comparisons import CURVES
from .scaling import Curve

MARKS = ("<!-- benchmark:begin {} -->", "<!-- benchmark:end {} -->")
"""Around what a part of the benchmark writes; what stands between them is replaced."""


def curves(results: Sequence[Result]) -> list[Curve]:
    """Of the results of `scaling`: a point's seconds are the fewest of all rounds."""
    found = []
    for result in results:
        if result.comparison.part != "scaling":
            continue
        name = result.comparison.name.partition(".")[2]
        (row,), (subject,) = result.rows, result.comparison.subjects
        seconds = [min(column) for column in zip(*(turn["seconds_of"] for turn in row.turns), strict=True)]
        found.append(Curve(name, CURVES[name][0], subject.options["points"], row.turns[0]["costs"], seconds))
    return found


def plain(results: Sequence[Result], facts: Mapping[str, str]) -> dict[str, Any]:
    """Everything, for a JSON file."""
    return {
        "machine": dict(facts),
        "comparisons": [
            {
                "name": result.comparison.name,
                "title": result.comparison.title,
                "unit": result.comparison.unit,
                "note": result.note(),
                "rows": [row_data(result, row) for row in result.rows],
            }
            for result in results
        ],
        "curves": [
            dataclasses.asdict(curve) | {"slope": curve.slope, "verdict": curve.verdict} for curve in curves(results)
        ],
    }


def row_data(result: Result, row: Row) -> dict[str, Any]:
    spreads = {"value": result.value(row), "ratio": result.ratio(row), "peak_gib": row.spread("peak_gib")}
    found = {name: dataclasses.asdict(spread) if spread else None for name, spread in spreads.items()}
    return {"subject": row.subject, "missing": row.missing, **found, "turns": row.turns}


def markdown(part: str, results: Sequence[Result], facts: Mapping[str, str], command: str) -> str:
    """The tables of one part, with the machine and the command that made them."""
    lines = [f"Made by `{command}` on " + "; ".join(f"{name}: {value}" for name, value in facts.items()) + "."]
    if part == "scaling":
        return "\n".join([*lines, "", *curve_lines(curves(results))])
    for result in results:
        if result.comparison.part == part:
            lines += ["", f"**{result.comparison.title}**", "", *result_lines(result)]
            if note := result.note():
                lines += ["", note]
    return "\n".join(lines)


def result_lines(result: Result) -> Iterator[str]:
    """Without ratios where somebody is alone, and without memory where that is what is compared."""
    alone, of_memory = len(result.rows) == 1, result.comparison.value == "peak_gib"
    heads = [result.comparison.unit]
    heads += [] if alone else ["moyun is × as good"]
    heads += [] if of_memory else ["peak memory"]
    yield f"| | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    for row in result.rows:
        value, ratio, peak = result.value(row), result.ratio(row), row.spread("peak_gib")
        if row.missing or not value:
            yield f"| {row.subject} | {row.missing}" + " |" * len(heads)
            continue
        cells = [in_words(value)]
        cells += [] if alone else [in_words(ratio) if ratio else ""]
        if not of_memory:
            cells.append(f"{peak.median:.2f} GiB" if peak and not row.subject.startswith("limit") else "")
        yield f"| {row.subject} | {' | '.join(cells)} |"


def in_words(spread: Spread) -> str:
    """Median (least–most), in three figures."""
    if spread.least == spread.most:
        return figure(spread.median)
    return f"{figure(spread.median)} ({figure(spread.least)}–{figure(spread.most)})"


def figure(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def curve_lines(found: Sequence[Curve]) -> Iterator[str]:
    yield "| | points | seconds | slope | verdict |"
    yield "|---|---|---|---|---|"
    for curve in found:
        points, seconds = (" · ".join(map(str, some)) for some in (curve.points, map(figure, curve.seconds)))
        timed = CURVES[curve.name][1]
        yield f"| {timed} by {curve.axis} | {points} | {seconds} | {curve.slope:.2f} | {curve.verdict} |"


def require_marks(path: Path, parts: Sequence[str]) -> None:
    """ValueError for a document that a part's tables have no place in."""
    if not path.is_file():
        raise ValueError(f"table={path}: no such file; give a Markdown file with benchmark marks, or leave it out")
    text = path.read_text(encoding="utf-8")
    for part in parts:
        if not between(part).search(text):
            begin, end = (mark.format(part) for mark in MARKS)
            raise ValueError(f"table={path} has no place for {part}: add the lines {begin} and {end}")


def between(part: str) -> re.Pattern[str]:
    begin, end = (re.escape(mark.format(part)) for mark in MARKS)
    return re.compile(rf"(?<={begin}\n).*?(?={end})", re.DOTALL)


def write_tables(path: Path, tables: Mapping[str, str]) -> None:
    """Replaces what stands between each part's marks."""
    text = path.read_text(encoding="utf-8")
    for part, table in tables.items():
        found = between(part).search(text)
        assert found, "require_marks sees to it"
        text = f"{text[: found.start()]}\n{table}\n\n{text[found.end() :]}"
    path.write_text(text, encoding="utf-8")
