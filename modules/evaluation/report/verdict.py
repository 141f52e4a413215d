"""The verdict of an evaluation: what the model is better than, worse than or undecided against, in a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ...config.evaluation import MAIN_MEASURE, NGRAMS
from ..statistics import Metric, PairedComparison, compare
from ..task_evaluation import Evaluation
from .contents import Report, label, number

PER_CHARACTER = "perplexity_per_char"

PEOPLE = "reference"
"""Who isn't among those that a model is to beat: the right answers themselves."""

SMALLEST = 0.001
"""Of the p-values that are told; drawing a few thousand exchanges can't tell smaller ones."""

IN_WORDS = {
    "better": "better than",
    "worse": "worse than",
    "the same": "the same on every row as",
    "undecided": "undecided against",
}


def measure_of(metrics: Sequence[str], model: Evaluation) -> Metric:
    """What a task is about: of its metrics the first that compares answers with right ones, else the likelihood.

    metrics: those of the task, in its order. A metric without a value is passed over.
    """
    wanted = [*(MAIN_MEASURE[name] for name in metrics if name in MAIN_MEASURE), PER_CHARACTER]
    known = [model[name] for name in wanted if name in model and math.isfinite(model[name].value)]
    return (known or model.metrics)[0]


def compared_by(measure: Metric, evaluations: Mapping[str, Evaluation]) -> dict[str, PairedComparison]:
    """The model against everyone who has the measure on the same rows; against n-grams by their likelihood."""
    model, found = evaluations["model"], {}
    for who, other in evaluations.items():
        own = model[PER_CHARACTER] if who in NGRAMS and PER_CHARACTER in model else measure
        if who not in ("model", PEOPLE) and (test := compared(own, other)):
            found[who] = test
    return found


def compared(metric: Metric, other: Evaluation) -> PairedComparison | None:
    """None where the other hasn't the metric on the same rows, or one of the two has no value."""
    if metric.name not in other or other[metric.name].statistics.shape != metric.statistics.shape:
        return None
    found = compare(metric, other[metric.name], resamples=2000)
    return found if math.isfinite(found.difference) else None


def verdict(report: Report) -> str:
    """In a sentence or two."""
    return "".join(text for _, text in verdict_parts(report))


def verdict_parts(report: Report) -> Iterator[tuple[str, str]]:
    """(outcome or "", text) of each part of the verdict, which together are its sentences."""
    measure = report.measure or next(iter(report.scores), "")
    for position, name in enumerate(dict.fromkeys([measure, PER_CHARACTER])):
        row = report.scores.get(name, {})
        if not row:
            continue
        who, (metric, low, high) = next(iter(row.items()))
        tests = tests_of(report, name, position > 0)
        if tests:
            value = "" if math.isnan(metric.value) else f" ({number(metric.value)}; {metric.direction})"
            yield "", f"{'. ' if position else ''}By {in_sentence(label(name))}{value}, the {who} is "
            yield from joined(tests, {other: found[0].value for other, found in row.items()})
        elif not position:
            between = "" if math.isnan(low) else f" ({number(low)} to {number(high)})"
            score = "no score" if math.isnan(metric.value) else number(metric.value) + between
            yield "", f"By {in_sentence(label(name))}, the {who} has {score}; nothing was compared with it"
    if report.scores:
        yield "", "."


def tests_of(report: Report, name: str, ngrams_alone: bool) -> dict[str, PairedComparison]:
    """Who → the test by a metric; of n-grams only the best."""
    tests = {who: test for who, found in report.comparisons.items() for test in found if test.name == name}
    tests = {who: test for who, test in tests.items() if who in NGRAMS or not ngrams_alone}
    counted = sorted((who for who in tests if who in NGRAMS), key=lambda who: tests[who].old)
    return {who: test for who, test in tests.items() if who not in counted[1:]}


def joined(tests: Mapping[str, PairedComparison], values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """better than A and B; worse than C."""
    begun = ""
    for kind, words in IN_WORDS.items():
        names = [who for who, test in tests.items() if outcome(test) == kind]
        for who in names:
            between = f"{begun}{words} " if who is names[0] else " and " if who is names[-1] else ", "
            yield kind, between + opponent(who, tests[who], values[who])
        begun = "; " if names else begun


def opponent(who: str, test: PairedComparison, value: float) -> str:
    """Who it was, the other's value, p, and what an undecided test would have shown."""
    facts = [number(value), f"p {p_value(test)}" if test.p_value < SMALLEST else f"p = {p_value(test)}"]
    if test.unread:
        facts.append(f"{test.unread:,} rows hold characters that the tokenizer of the one ahead loses")
    elif outcome(test) == "undecided" and math.isfinite(test.low):
        facts.append(f"so many rows show a difference of {number(test.detectable)}")
    return f"{f'the best n-grams, {who}' if who in NGRAMS else who} ({'; '.join(facts)})"


def in_sentence(title: str) -> str:
    """A label within a sentence: Perplexity per character → perplexity per character, but ROUGE-L."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def p_value(found: PairedComparison) -> str:
    return f"< {SMALLEST}" if found.p_value < SMALLEST else f"{found.p_value:.3f}"


def outcome(found: PairedComparison) -> str:
    """better, worse, undecided or the same."""
    apart = found.difference != 0 or abs(found.low) > 0 or abs(found.high) > 0
    return found.verdict if apart else "the same"
