"""What is said of rows before training, and the pictures of it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from modules.evaluation.report.figures import cumulative, interval_bars, lines, loss_curve, points
from modules.tokenizer.text_statistics import describe_texts
from modules.tokenizer.tokenizer import Tokenizer


def test_lengths_and_coverage_of_known_and_unknown_characters(tokenizer: Tokenizer) -> None:
    found = describe_texts(["春春风", "春龘", ""], tokenizer)  # 龘 stands in no poem of the sample
    assert found.characters.tolist() == [3, 2, 0]
    assert found.tokens.tolist() == [3, 1 + len("龘".encode()), 0]
    assert found.frequency == {"春": 3, "风": 1, "龘": 1}
    assert next(iter(found.frequency)) == "春"
    assert found.unknown == ["龘"]
    assert found.coverage == pytest.approx(4 / 5)
    assert found.tokens_per_character == pytest.approx(7 / 5)


def test_no_text_is_no_error(tokenizer: Tokenizer) -> None:
    found = describe_texts([], tokenizer)
    assert (found.coverage, found.tokens_per_character) == (1.0, 0.0)


LABELS = {"title": "t", "xlabel": "x", "ylabel": "y"}


@pytest.mark.parametrize(
    "figure",
    [
        interval_bars({"model": (239.0, 220.0, 250.0), "bigram": (414.0, 400.0, 430.0)}, "perplexity"),
        lines({"train": cumulative(np.arange(50)), "test": ([3.0], [4.0])}, LABELS, limits={"cut": 30}),
        points([1e-4, 1e-3], [5.0, 4.0], LABELS, log="x"),
        points([10.0, 1000.0], [9.0, 800.0], LABELS, log="xy", diagonal="no change"),
        lines({"": ([1, 2, 3], [9, 3, 1])}, LABELS, log="xy"),
    ],
    ids=["interval_bars", "lines", "points", "diagonal", "logarithmic"],
)
def test_pictures_can_be_drawn(figure: Figure) -> None:
    figure.savefig(buffer := io.BytesIO())
    assert buffer.getvalue().startswith(b"\x89PNG")
    assert figure.axes[0].get_xlabel()


@pytest.mark.parametrize("low", [3.0, 300.0])
def test_a_logarithmic_axis_is_marked_with_numbers_written_out(low: float) -> None:
    scores = {"model": (low, 0.9 * low, 1.1 * low), "bigram": (9 * low, 8.5 * low, 9.5 * low), "none": (np.nan,) * 3}
    figure = interval_bars(scores, "perplexity", log=True)
    axes = figure.axes[0]
    figure.canvas.draw()
    marks = [float(mark.get_text().replace(",", "")) for mark in axes.get_xticklabels()]
    assert axes.get_xscale() == "log"
    assert marks == axes.get_xticks().tolist()
    assert 2 <= len(marks) <= 5
    assert [text.get_text() for text in axes.texts] == [f"{9 * low:,.4g}", f"{low:,.4g}"]


def test_validations_of_a_loss_curve_are_seen_and_the_lowest_is_told() -> None:
    train = [(step, 5 - step / 1000) for step in range(1, 900)]
    validation = [(step, 4.6 - step / 1000 if step < 400 else 4.4) for step in range(10, 900, 10)]
    axes = loss_curve({"train/loss": train, "val/loss": [*validation, (900, np.nan)]}, "finetune").axes[0]
    assert [line.get_marker() for line in axes.lines] == ["None", "o"]
    assert axes.lines[1].get_label() == "validation, lowest 4.21 at step 390"
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == (
        "optimizer step",
        "loss (nats a token)",
        "linear",
    )


def test_a_loss_that_spans_decades_is_drawn_on_a_logarithmic_axis() -> None:
    axes = loss_curve({"train/loss": [(1, 900.0), (2, 9.0)], "val/loss": []}, "diverged").axes[0]
    assert axes.get_yscale() == "log"
    assert [mark.get_text() for mark in axes.get_yticklabels()] == ["10", "30", "100", "300", "1,000"]
    assert not loss_curve({}, "nothing").axes[0].lines


def test_shares_of_values_up_to_each() -> None:
    x, y = cumulative([24, 32, 24, 24])
    assert list(zip(x, y, strict=True)) == [(24, 75), (32, 75), (32, 100)]  # a step at each value
    assert cumulative([7.0]) == ([7.0], [100.0])


def test_intervals_stand_where_they_should() -> None:
    axes = interval_bars({"model": (239.0, 220.0, 250.0), "bigram": (414.0, 400.0, 430.0)}, "perplexity").axes[0]
    low, high = axes.get_xlim()
    assert low < 220
    assert high > 430
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bigram", "model"]  # the first on top
