"""What is said of rows before training, and the pictures of it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from modules.evaluation.report.figures import histogram, interval_bars, line, points
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
        histogram({"train": np.arange(50), "test": [3.0, 4.0]}, "characters", "length"),
        histogram({"model": [100.0, 200.0, 4000.0]}, "perplexity", "rows", log=True),
        points([1e-4, 1e-3], [5.0, 4.0], LABELS, log="x"),
        line([9, 3, 1], LABELS, log=True),
    ],
    ids=["interval_bars", "histogram", "logarithmic", "points", "line"],
)
def test_pictures_can_be_drawn(figure: Figure) -> None:
    figure.savefig(buffer := io.BytesIO())
    assert buffer.getvalue().startswith(b"\x89PNG")
    assert figure.axes[0].get_xlabel()


def test_intervals_stand_where_they_should() -> None:
    axes = interval_bars({"model": (239.0, 220.0, 250.0), "bigram": (414.0, 400.0, 430.0)}, "perplexity").axes[0]
    low, high = axes.get_xlim()
    assert low < 220
    assert high > 430
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bigram", "model"]  # the first on top
