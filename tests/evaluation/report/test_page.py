"""What the page holds, that it needs nothing else, and that no row can get out of its place in it."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from modules.evaluation.report.charts import BINS, bar_chart, length_chart, line_chart
from modules.evaluation.report.contents import Column, Example, Report, Sample, number
from modules.evaluation.report.figures import POINTS, ticks
from modules.evaluation.report.page import html
from modules.evaluation.statistics import Metric, compare, mean, perplexity, ratio
from tests.helpers.browser import page as browser_page

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}\u202e\x00\ud800"


class Elements(HTMLParser):
    """Every element with its attributes; all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def report() -> Report:
    rng = np.random.default_rng(0)
    old = perplexity("perplexity_per_char", rng.gamma(9, 0.5, 80) * 20, np.full(80, 20))
    new = perplexity("perplexity_per_char", old.statistics[:, 0] * 0.98, np.full(80, 20))
    scores = mean("rouge_l", rng.random(80))
    return Report(
        title=f"Evaluation {HOSTILE}",
        facts={f"fact {HOSTILE}": HOSTILE},
        columns=[Column("model", [new, scores]), Column(f"champion {HOSTILE}", [old])],
        comparisons={f"champion {HOSTILE}": [compare(new, old)]},
        curves={f"Loss {HOSTILE}": {"train": [(step, 5 + 1 / step) for step in range(1, 2000)], HOSTILE: [(1, 2.0)]}},
        lengths={"written": [20, 24, 28], f"reference {HOSTILE}": [20, 20, 5000]},
        form={f"Lines {HOSTILE}": {"written": {HOSTILE: 3, "4": 5}}},
        examples=[
            Example(f"源{i} {HOSTILE}", float(i), text=HOSTILE, reference=HOSTILE, stopped=i % 4 > 0) for i in range(40)
        ],
        score_name="rouge_l",
        samples=[Sample(HOSTILE, HOSTILE, False)],
        made_by={"run": HOSTILE},
    )


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    page = html(report())
    found = Elements(page)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "form", "a"}
    attributes = {name for _, attributes in found.elements for name in attributes}
    assert not {name for name in attributes if name.startswith("on") or name in ("src", "href", "srcset", "action")}
    assert not re.search(r"https?:|@import|url\(", page)
    policy = next(attributes for tag, attributes in found.elements if tag == "meta" and "http-equiv" in attributes)
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_rows_are_shown_as_they_are_and_nothing_of_them_is_read() -> None:
    page = html(report())
    assert "<script>alert(1)</script>" in Elements(page).text
    assert "{{ 7*7 }}" in page
    assert not re.search("[\x00\u202e\ud800]", page)
    page.encode("utf-8")


def test_scores_intervals_and_verdicts_stand_there() -> None:
    contents = report()
    text = Elements(html(contents)).text
    model, champion = (column.metrics[0] for column in contents.columns)
    for measure in (model, champion):
        low, high = measure.interval()
        assert number(measure.value) in text
        assert f"{number(low)} to {number(high)}" in text
    assert "model is better" in text
    assert "30 of" not in text
    assert "75.0 %" in text  # of the texts ended by themselves


def test_worst_and_best_rows_are_apart_and_in_order() -> None:
    examples = [Example(str(i), score) for i, score in enumerate([3.0, math.nan, 1.0, 2.0, 5.0, 4.0])]
    worst, best = Report("r", examples=examples).ranked(2)
    assert ([e.score for e in worst], [e.score for e in best]) == ([1.0, 2.0], [5.0, 4.0])
    worst, best = Report("r", examples=examples, higher_is_better=False).ranked(8)
    assert ([e.score for e in worst], [e.score for e in best]) == ([5.0, 4.0, 3.0], [1.0, 2.0])


def test_of_a_metric_that_is_best_at_a_value_the_farthest_rows_are_the_worst() -> None:
    examples = [Example(str(i), score) for i, score in enumerate([1.0, 3.0, 0.2, 1.1])]
    worst, best = Report("r", examples=examples, best=1).ranked(2)
    assert ([e.score for e in worst], [e.score for e in best]) == ([3.0, 0.2], [1.0, 1.1])


def places(page: str, tag: str) -> list[float]:
    return [float(at) for at in re.findall(rf'<{tag} style="left: ([-\d.]+)%', page)]


def test_every_score_has_an_axis_and_that_of_perplexity_is_logarithmic() -> None:
    values = [perplexity("perplexity_per_char", np.log([value] * 9), np.ones(9)) for value in (10, 100, 1000)]
    page = html(Report("r", columns=[Column(str(i), [metric]) for i, metric in enumerate(values)]))
    low, middle, high = places(page, "b")
    assert middle - low == pytest.approx(high - middle, abs=0.1)  # as far from 10 to 100 as from 100 to 1,000
    marks = dict(zip(re.findall(r'<small style="left[^>]*>([^<]*)', page), places(page, "small"), strict=True))
    assert marks["10"] == pytest.approx(low, abs=0.1)
    assert marks["1,000"] == pytest.approx(high, abs=0.1)
    assert "lower is better" in page


def test_the_best_value_is_marked_where_it_is_neither_the_highest_nor_the_lowest() -> None:
    of = {who: Metric("length_ratio", np.array([[n, 10.0]] * 9), ratio, best=1) for who, n in (("a", 8), ("b", 14))}
    page = html(Report("r", columns=[Column(who, [metric]) for who, metric in of.items()]))
    assert "best at 1" in page
    marked = float(re.findall(r'class="best" style="left: ([\d.]+)%', page)[0])
    short, long = places(page, "b")
    assert (marked - short) / (long - short) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize(
    ("low", "high", "logarithmic"),
    [(0.2, 0.37, False), (60.0, 900.0, True), (81.0, 88.0, True), (1.5, 1e9, True), (0.97, 1.0, False), (-5, 5, False)],
)
def test_axes_have_two_to_five_round_marks(low: float, high: float, logarithmic: bool) -> None:
    found = ticks(low, high, logarithmic)
    assert 2 <= len(found) <= 5
    assert low <= found[0] < found[-1] <= high
    assert all(len(f"{value:.10g}".strip("0").replace(".", "").strip("0")) <= 3 for value in found)


def test_an_axis_of_zeros_goes_up_and_not_below() -> None:
    page = html(Report("r", columns=[Column(who, [mean("repeated lines", [0.0] * 5)]) for who in ("a", "b")]))
    assert ">0.5<" in page
    assert "−" not in page


def test_an_empty_report_has_no_empty_sections() -> None:
    found = Elements(html(Report("nothing yet")))
    assert not {tag for tag, _ in found.elements} & {"h2", "section", "svg", "table", "footer", "dl"}


def test_a_single_row_has_a_score_without_an_interval() -> None:
    page = html(Report("one", columns=[Column("model", [mean("m", [0.5])]), Column("other", [mean("m", [math.nan])])]))
    assert "nan" not in page
    assert ">0.5000<" in page


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    lines = {"train": [(step, float(step)) for step in range(100_000)], "nothing": [(1, math.nan)]}
    svg = line_chart(lines, "step")
    points = re.findall(r'<path d="M ([^"]*)" style="fill: none; stroke: var\(--s0\)', svg)[0].split(" L ")
    assert len(points) <= POINTS
    (first, _), (last, _) = points[0].split(), points[-1].split()
    labels = dict(re.findall(r'<text [^>]*x="([\d.]+)"[^>]*>([\d,]+)</text>', svg))
    left, right = (float(next(x for x, label in labels.items() if label == at)) for at in ("0", "100,000"))
    assert (float(first), float(last)) == pytest.approx((left, right), abs=2)
    assert len(svg) < 20_000
    assert line_chart({"nothing": []}, "step") == ""


def test_histograms_count_every_text_once() -> None:
    svg = length_chart({"a": [10] * 3 + [20], "b": [10**6]}, "characters")
    shapes = re.findall(r'<path d="([^"]*)" style="fill: var\(--s(\d)\)', svg)
    assert [series for _, series in shapes] == ["0", "1"]
    assert shapes[0][0].count("L") <= 2 * BINS + 2
    assert (length_chart({"a": []}, "x"), bar_chart({"a": {}})) == ("", "")
    assert "75.0%" in bar_chart({"a": {"4": 3, "5": 1}})


def test_pictures_follow_the_page_and_are_the_same_each_time() -> None:
    page = html(report())
    pictures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert pictures.count("<svg") == 3
    assert not re.search(r"#[0-9a-f]{6}|font-family|<style|var\(--ink\)", pictures)
    names = re.findall(r' id="([^"]*)"', pictures)
    assert len(names) == len(set(names))
    assert html(report()) == page
    assert bar_chart({"a": {"春$\\frac$": 1}})  # neither a formula nor a character that matplotlib lacks


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01234, "0.0123"), (0.28131, "0.2813"), (239.14, "239.1"), (-1439.4, "−1,439"), (math.nan, "–")],
)
def test_numbers_have_four_figures(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.92, 9.1), (-2, 2), (1e-4, 3e-4), (10, 5000), (7, 7)])
def test_marks_are_round_and_inside(low: float, high: float) -> None:
    svg = line_chart({"values": [(0, low), (1, high)]}, "step")
    texts = re.findall(r'<text style="text-anchor: end[^>]*>([^<]*)</text>', svg)
    found = [float(text.replace("−", "-").replace(",", "")) for text in texts]
    assert 1 <= len(found) <= 8
    room = (high - low or high) * 0.07
    assert all(low - room <= value <= high + room for value in found)


def test_the_same_model_is_said_to_be_the_same() -> None:
    measure = mean("m", [0.1, 0.5, 0.9])
    columns = [Column("model", [measure]), Column("champion", [measure])]
    page = html(Report("r", columns=columns, comparisons={"champion": [compare(measure, measure)]}))
    assert "The same on every row, by every metric." in page
    assert "undecided</span>" not in page


def test_on_a_phone_nothing_stands_beyond_its_edge_and_names_stay_whole(tmp_path: Path) -> None:
    metrics = [mean(name, np.random.default_rng(0).random(20)) for name in ("rougeL", "a_metric_with_a_long_name", "m")]
    who = ("model", "baseline", "most_frequent")
    tests = {name: [compare(metric, metric) for metric in metrics] for name in who[1:]}
    columns = [Column(name, metrics) for name in who]
    long = Example("长" * 2000, 0.5, text="x" * 2000, reference="行\n" * 200, stopped=False)
    made = Report(HOSTILE * 3, {"model": "models:/m-" + "a9" * 16}, columns=columns, comparisons=tests, examples=[long])
    (tmp_path / "report.html").write_text(html(made), encoding="utf-8")
    with browser_page() as tab:
        tab.look(390, 844, mobile=True)
        tab.open((tmp_path / "report.html").as_uri())
        assert tab.value("document.documentElement.scrollWidth") <= 390
        heights = tab.value("[...document.querySelectorAll('.score .name')].map(e => e.getBoundingClientRect().height)")
        assert len(heights) == 9
        assert max(heights) < 1.5 * min(heights)  # no name takes a second line
