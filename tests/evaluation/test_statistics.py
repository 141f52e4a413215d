"""Intervals that cover, tests that don't find what isn't there and find what is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from modules.evaluation.statistics import Metric, compare, mean, perplexity, ratio, rows_in_words, with_clusters


def losses(rng: np.random.Generator, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    characters = rng.integers(5, 60, rows)
    return rng.gamma(4.0, 1.2, rows) * characters, characters


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        low, high = mean("m", rng.exponential(2.0, 100)).interval(resamples=500, seed=trial)
        covered += low <= 2.0 <= high
    assert 176 <= covered <= 199  # 95 % of 200, give or take what 200 trials and a skewed sample do to it


def test_perplexity_is_of_sums_and_not_a_mean_of_rows() -> None:
    measure = perplexity("p", np.array([2.0, 30.0]), np.array([1, 9]))
    assert measure.value == pytest.approx(math.exp(3.2))
    assert perplexity("p", np.array([1e6]), np.array([1])).value == pytest.approx(math.exp(700))


def test_a_row_without_a_value_counts_for_nothing() -> None:
    assert mean("m", [1.0, math.nan, 3.0]).value == 2.0
    assert math.isnan(mean("m", [math.nan]).value)
    assert all(map(math.isnan, mean("m", [1.0]).interval()))
    with pytest.raises(ValueError, match="at least one row"):
        mean("m", [])


def test_equal_models_are_seldom_told_apart() -> None:
    """200 A/A comparisons: two models whose rows differ by chance alone."""
    rng = np.random.default_rng(2)
    verdicts = []
    for trial in range(200):
        nll, characters = losses(rng)
        one, other = (nll * np.exp(rng.normal(0, 0.2, len(nll))) for _ in range(2))
        verdicts.append(
            compare(perplexity("p", one, characters), perplexity("p", other, characters), 0.05, 500, trial).verdict
        )
    assert verdicts.count("better") <= 10  # 5 % of all; 2.5 % are expected
    assert verdicts.count("better") + verdicts.count("worse") >= 1, "a test that never fires tells nothing"


def test_rows_of_one_group_tell_no_more_than_one_row() -> None:
    """Each row three times: no more is known than before, and without groups the interval would say otherwise."""
    rng = np.random.default_rng(6)
    one, other = rng.exponential(2.0, 60), rng.exponential(2.2, 60)
    labels = [f"poem {number}" for number in range(60)]
    alone, repeated = mean("m", one), mean("m", np.tile(one, 3))
    together = with_clusters(repeated, labels * 3)
    assert together.value == pytest.approx(alone.value)
    assert np.diff(together.interval()) == pytest.approx(np.diff(alone.interval()), rel=0.15)
    assert np.diff(repeated.interval()) < 0.7 * np.diff(together.interval())
    found = compare(together, with_clusters(mean("m", np.tile(other, 3)), labels * 3))
    assert found.p_value == pytest.approx(compare(alone, mean("m", other)).p_value, abs=0.03)
    assert rows_in_words(together) == "180 test rows in 60 groups"
    with pytest.raises(ValueError, match="different groups"):
        compare(together, repeated)


def test_a_row_without_a_group_stands_alone() -> None:
    assert len(with_clusters(mean("m", [1.0, 2.0, 3.0, 4.0]), ["null", "", "7", "7"]).units) == 3
    assert rows_in_words(with_clusters(mean("m", [1.0, 2.0]), None)) == "2 test rows"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_small_difference_on_every_row_is_found_whichever_way(sign: int) -> None:
    nll, characters = losses(np.random.default_rng(3))
    rng = np.random.default_rng(4)
    new = perplexity("p", nll * (1 + sign * 0.02) + rng.normal(0, 0.5, len(nll)), characters)
    found = compare(new, perplexity("p", nll, characters))
    assert found.verdict == ("worse" if sign > 0 else "better")
    assert found.p_value < 0.01
    assert found.low <= found.difference <= found.high
    assert (found.low > 0) == (sign > 0)
    assert abs(found.difference) > found.detectable
    assert found.power > 0.8


def test_a_model_against_itself_is_undecided() -> None:
    measure = perplexity("p", *losses(np.random.default_rng(5)))
    found = compare(measure, measure)
    assert (found.verdict, found.difference, found.p_value, found.power) == ("undecided", 0.0, 1.0, 0.0)


def test_rows_without_a_value_speak_for_no_difference() -> None:
    """Of 20 rows two have a value: draws without them say nothing, and exchanges are few."""
    values = [math.nan] * 18
    found = compare(mean("m", [*values, 1.0, 0.9]), mean("m", [*values, 0.1, 0.0]))
    assert found.verdict == "undecided"
    assert all(math.isfinite(value) for value in (found.low, found.high, found.detectable))
    nothing = compare(mean("m", [math.nan, math.nan]), mean("m", [0.1, 0.2]))
    assert (nothing.verdict, nothing.p_value) == ("undecided", 1.0)


def test_two_rows_decide_nothing() -> None:
    found = compare(mean("m", [1.0, 1.0]), mean("m", [0.0, 0.0]))
    assert found.verdict == "undecided"


def test_other_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="can't be compared"):
        compare(mean("m", [1.0, 2.0]), mean("m", [1.0]))


def lengths_of(written: float, rows: int = 200) -> Metric:
    """Texts of about so many times the length that is expected."""
    drawn = np.random.default_rng(7).poisson(20 * written, rows)
    return Metric("length_ratio", np.stack([drawn, np.full(rows, 20)], 1).astype(float), ratio, best=1)


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [(1.05, 1.6, "better"), (0.95, 1.6, "better"), (1.6, 0.95, "worse"), (0.6, 0.95, "worse")],
)
def test_of_a_metric_that_is_best_at_a_value_the_nearer_one_wins(new: float, old: float, expected: str) -> None:
    found = compare(lengths_of(new), lengths_of(old))
    assert found.verdict == expected
    assert (found.new, found.old) == pytest.approx((abs(new - 1), abs(old - 1)), abs=0.05)
    assert found.low <= found.difference <= found.high
    assert (found.difference < 0) == (expected == "better")


def test_two_models_as_far_from_the_best_value_are_not_told_apart() -> None:
    """One writes a fifth too little, the other a fifth too much: that they differ makes neither better."""
    assert compare(lengths_of(0.8), lengths_of(1.2)).verdict == "undecided"
    assert compare(lengths_of(0.8).distance(), lengths_of(1.2).distance()).verdict == "undecided"


def test_values_are_ranked_by_what_is_good() -> None:
    up, down, at = mean("m", [0.0]), mean("m", [0.0], higher_is_better=False), lengths_of(1)
    values = [0.2, 1.1, 3.0, math.nan]
    assert [sorted(values, key=each.cost)[0] for each in (up, down, at)] == [3.0, 0.2, 1.1]
    assert all(math.isnan(sorted(values, key=each.cost)[-1]) for each in (up, down, at))
    assert [each.direction for each in (up, down, at)] == ["higher is better", "lower is better", "best at 1"]
