"""The sentence on top of a report: right about every opponent, and honest where nothing can be said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from modules.evaluation.report.contents import Column, Report
from modules.evaluation.report.page import html
from modules.evaluation.report.verdict import compared_by, measure_of, verdict, verdict_parts
from modules.evaluation.statistics import Metric, mean, perplexity
from modules.evaluation.task_evaluation import Evaluation
from tests.evaluation.report.test_page import Elements

ROWS = 120


def rouge(shift: float, seed: int = 0) -> Metric:
    drawn = np.random.default_rng(0).beta(2, 5, ROWS)
    return mean("rougeL", np.clip(drawn + shift + np.random.default_rng(seed).normal(0, 0.05, ROWS), 0, 1))


def per_character(value: float) -> Metric:
    nll = np.log(value) + np.random.default_rng(1).normal(0, 0.2, ROWS)
    return perplexity("perplexity_per_char", nll * 20, np.full(ROWS, 20))


def report(measure: str, **scored: Sequence[Metric]) -> Report:
    evaluations = {who: Evaluation(list(metrics)) for who, metrics in scored.items()}
    chosen = evaluations["model"][measure]
    tests = {who: [test] for who, test in compared_by(chosen, evaluations).items()}
    return Report("t", columns=[Column(who, e.metrics) for who, e in evaluations.items()], measure=measure,
                  comparisons=tests)  # fmt: skip


def outcomes(made: Report) -> Mapping[str, str]:
    """Opponent → what the sentence says of it."""
    parts = [(kind, text) for kind, text in verdict_parts(made) if kind]
    return {who: kind for who in made.comparisons for kind, text in parts if who in text}


def test_every_opponent_is_named_with_what_the_test_found() -> None:
    made = report(
        "rougeL",
        model=[per_character(80), rouge(0)],
        champion=[per_character(80), rouge(0.002, seed=9)],
        baseline=[per_character(90), rouge(-0.1)],
        lead=[rouge(0.1)],
        nearest=[rouge(-0.05)],
        reference=[mean("rougeL", np.ones(ROWS))],
        unigram=[per_character(700)],
        bigram=[per_character(60)],
    )
    assert outcomes(made) == {
        "champion": "undecided", "baseline": "better", "lead": "worse", "nearest": "better", "bigram": "worse"
    }  # fmt: skip
    said = verdict(made)
    assert said.startswith("By ROUGE-L (")
    assert "higher is better" in said
    assert "By perplexity per character" in said  # n-grams write nothing
    assert "reference" not in said  # the right answers are nobody to beat
    assert "unigram" not in said  # not the best of the n-grams
    assert "so many rows show a difference of" in said
    assert said in Elements(html(made)).text


def test_the_model_itself_under_another_name_scores_the_same() -> None:
    made = report("rougeL", model=[rouge(0)], champion=[rouge(0)])
    assert "the same on every row as champion" in verdict(made)


def test_one_row_and_no_value_decide_nothing() -> None:
    alone = mean("rougeL", [0.5])
    assert outcomes(report("rougeL", model=[alone], baseline=[mean("rougeL", [0.1])])) == {"baseline": "undecided"}
    nothing = report("rougeL", model=[mean("rougeL", [math.nan])], baseline=[alone])
    assert verdict(nothing) == "By ROUGE-L, the model has no score; nothing was compared with it."


def test_without_anything_beside_it_the_model_only_has_a_score() -> None:
    said = verdict(report("perplexity_per_char", model=[per_character(80)]))
    assert said.startswith("By perplexity per character, the model has 79.")
    assert said.endswith("nothing was compared with it.")
    assert verdict(Report("nothing yet")) == ""


@pytest.mark.parametrize(
    ("metrics", "names", "measure"),
    [
        (["perplexity"], ["perplexity_per_char"], "perplexity_per_char"),
        (["perplexity", "verse"], ["perplexity_per_char", "rhyme"], "perplexity_per_char"),
        (["perplexity", "bleu", "rouge"], ["perplexity_per_char", "bleu", "rouge1", "rougeL"], "bleu"),
        (["perplexity", "length", "rouge"], ["perplexity_per_char", "length_ratio", "rougeL"], "rougeL"),
        (["choices"], ["choice_accuracy", "choice_accuracy_per_char"], "choice_accuracy"),
        (["slots"], ["slot_error_rate"], "slot_error_rate"),
        (["length", "repetition"], ["length_ratio", "distinct_2"], "length_ratio"),
    ],
)
def test_the_measure_is_what_the_task_is_about(metrics: list[str], names: list[str], measure: str) -> None:
    found = Evaluation([mean(name, [0.5, 0.6]) for name in names])
    assert measure_of(metrics, found).name == measure


def test_a_measure_without_a_value_is_passed_over() -> None:
    found = Evaluation([mean("perplexity_per_char", [3.0]), mean("rougeL", [math.nan])])
    assert measure_of(["rouge"], found).name == "perplexity_per_char"
