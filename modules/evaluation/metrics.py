"""Metrics of generated texts beside their references, each as its rows' statistics (statistics.py).

Only what was generated is scored, never the prompt. ROUGE: Lin 2004, F1 on characters as rouge_score computes it on
tokens. BLEU (Papineni et al. 2002) and chrF (Popović 2015) by sacrebleu (Post 2018). Slot error rate: Wen et al. 2015.
Repetition: seq-rep-n of Welleck et al. 2020, on characters. docs/tasks.md has the formulas.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from sacrebleu.metrics.bleu import BLEU, MAX_NGRAM_ORDER
from sacrebleu.metrics.chrf import CHRF

from .statistics import Metric, mean, ratio
from .task_rows import TaskRow
from .verse.copying import TrainingText
from .verse.form import couplet_form, form_of


def rouge(texts: Sequence[str], rows: Sequence[TaskRow]) -> list[Metric]:
    """ROUGE-1, -2 and -L; of several references the one that fits best."""
    best = []
    for text, row in zip(texts, rows, strict=True):
        scores = [rouge_scores(characters(text), characters(reference)) for reference in row.references]
        best.append(np.max(scores, axis=0))
    return [mean(name, column) for name, column in zip(("rouge1", "rouge2", "rougeL"), np.array(best).T, strict=True)]


def verse(texts: Sequence[str], rows: Sequence[TaskRow], training: TrainingText | None) -> list[Metric]:
    """Form of each whole poem, its given first clause included; copies in what was generated alone."""
    poems = [row.source + text if row.continued else text for text, row in zip(texts, rows, strict=True)]
    found = means([form_of(poem) for poem in poems])
    if training:
        copied = {"copied from training": training.copied, "longest copy": training.longest}
        found += means([{name: float(of(text)) for name, of in copied.items()} for text in texts])
    return found


def couplet(texts: Sequence[str], rows: Sequence[TaskRow]) -> list[Metric]:
    """Form of each second line beside the first."""
    return means([couplet_form(row.source, text) for text, row in zip(texts, rows, strict=True)])


def characters(text: str) -> str:
    return "".join(text.split())


def rouge_scores(text: str, reference: str) -> tuple[float, float, float]:
    common = [sum((ngrams(text, n) & ngrams(reference, n)).values()) for n in (1, 2)]
    written, expected = len(text), len(reference)
    longest = f1(common_subsequence(text, reference), written, expected)
    return f1(common[0], written, expected), f1(common[1], written - 1, expected - 1), longest


def f1(common: int, written: int, expected: int) -> float:
    """Of precision common / written and recall common / expected."""
    return 2 * common / (written + expected) if common else 0.0


def ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[start : start + n] for start in range(len(text) - n + 1))


def common_subsequence(one: str, other: str) -> int:
    """Length of the longest one, a row of the table at once as the bits of an integer (Hyyrö 2004)."""
    places: dict[str, int] = defaultdict(int)
    for place, character in enumerate(one):
        places[character] |= 1 << place
    everything = left = (1 << len(one)) - 1
    for character in other:
        found = left & places.get(character, 0)
        left = ((left + found) | (left - found)) & everything
    return len(one) - left.bit_count()


def bleu(texts: Sequence[str], rows: Sequence[TaskRow], tokenize: str = "zh") -> list[Metric]:
    """Corpus BLEU-4 from 0 to 100, against all references of a row at once. A slot's value is one token."""
    counter = BLEU(tokenize=tokenize, effective_order=True)  # of a sentence; only what it counts is kept
    whole = values_as_characters(rows)
    statistics = []
    for text, row in zip(texts, rows, strict=True):
        found = counter.sentence_score(whole(text), [whole(reference) for reference in row.references])
        statistics.append([found.sys_len, found.ref_len, *found.counts, *found.totals])
    return [Metric("bleu", np.array(statistics, np.float64), bleu_of)]


def values_as_characters(rows: Sequence[TaskRow]) -> Callable[[str], str]:
    """Delexicalised text: each value of any row's slots as a character of its own, which no tokenizer takes apart."""
    known = {value for row in rows for value in row.slots}
    # Unicode's planes 15 and 16 are for private use: 131,068 characters that mean nothing to anybody else.
    character = {value: f" {chr(0xF0000 + number)} " for number, value in enumerate(sorted(known))}
    if not known:
        return str
    longest_first = re.compile("|".join(re.escape(value) for value in sorted(known, key=len, reverse=True)))
    return lambda text: longest_first.sub(lambda found: character[found.group()], text)


def bleu_of(sums: np.ndarray) -> np.ndarray:
    """sums (…, 2 + 2·4): lengths of text and reference, matching n-grams, all n-grams → sacrebleu's corpus score.

    Orders without a match count as half a match, a quarter, … (NIST's smoothing, sacrebleu's default).
    """
    length, reference = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., 2 : 2 + MAX_NGRAM_ORDER], sums[..., 2 + MAX_NGRAM_ORDER :]
    halvings = np.cumsum(matches == 0, axis=-1)
    counted = np.where(matches == 0, 0.5**halvings, matches)
    scored = (totals > 0).all(-1) & (matches > 0).any(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(counted / totals).mean(-1))
        brevity = np.exp(np.minimum(0.0, 1 - reference / length))
        return np.where(scored, 100 * brevity * precision, 0.0)


def chrf(texts: Sequence[str], rows: Sequence[TaskRow]) -> list[Metric]:
    """Corpus chrF from 0 to 100, on n-grams of up to 6 characters; of several references the one that fits best."""
    counter = CHRF()
    references = ([[counter._preprocess_segment(reference) for reference in row.references]] for row in rows)
    statistics = [
        counter._compute_segment_statistics(counter._preprocess_segment(text), counter._extract_reference_info(each))
        for text, (each,) in zip(texts, references, strict=True)
    ]
    return [Metric("chrf", np.array(statistics, np.float64), chrf_of)]


def chrf_of(sums: np.ndarray) -> np.ndarray:
    """sums (…, 6·3): of each order the n-grams of text and reference, and those in common → sacrebleu's corpus score.

    F of the mean precision and the mean recall over the orders that both have, recall counting twice as much.
    """
    written, expected, common = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    orders = (written > 0) & (expected > 0)
    count = np.maximum(1, orders.sum(-1))
    precision, recall = ((common * orders / np.maximum(1, n)).sum(-1) / count for n in (written, expected))
    factor = CHRF.BETA**2
    found: np.ndarray = np.divide(
        100 * (1 + factor) * precision * recall,
        factor * precision + recall,
        out=np.zeros_like(precision),
        where=precision + recall > 0,
    )
    return found


def slots(texts: Sequence[str], rows: Sequence[TaskRow]) -> list[Metric]:
    """(values that are missing + values that are another row's) / values. Lower is better, and may be over 1."""
    known = {value for row in rows for value in row.slots if len(value) > 1}  # one character is found by chance
    lengths = sorted({len(value) for value in known}, reverse=True)
    statistics = []
    for text, row in zip(texts, rows, strict=True):
        missing = sum(value not in text for value in row.slots)
        allowed = [*row.slots, *row.references]
        strange = sum(not any(value in other for other in allowed) for value in spotted(text, known, lengths))
        statistics.append([missing + strange, len(row.slots)])
    return [Metric("slot_error_rate", np.array(statistics, np.float64), ratio, higher_is_better=False)]


def spotted(text: str, known: set[str], lengths: Sequence[int]) -> set[str]:
    """Values that stand in a text; of overlapping ones the first, of those that begin together the longest."""
    found, start = set(), 0
    while start < len(text):
        value = next((text[start : start + n] for n in lengths if text[start : start + n] in known), None)
        if value:
            found.add(value)
        start += len(value or " ")
    return found


def exact_match(texts: Sequence[str], rows: Sequence[TaskRow]) -> list[Metric]:
    """Share of texts that are a reference, but for white space around them."""
    expected = [{reference.strip() for reference in row.references} for row in rows]
    return [mean("exact_match", [float(text.strip() in right) for text, right in zip(texts, expected, strict=True)])]


def repetition(texts: Sequence[str], rows: Sequence[TaskRow]) -> list[Metric]:
    """distinct_2: bigrams of characters that are their first in the text; repetition: fourgrams that aren't."""
    pairs, longer = (np.array([distinct(characters(text), n) for text in texts], np.float64) for n in (2, 4))
    repeated = np.stack([longer[:, 1] - longer[:, 0], longer[:, 1]], axis=1)
    return [Metric("distinct_2", pairs, ratio), Metric("repetition", repeated, ratio, higher_is_better=False)]


def distinct(text: str, n: int) -> tuple[int, int]:
    """(different n-grams, all n-grams)"""
    found = ngrams(text, n)
    return len(found), sum(found.values())


def length(texts: Sequence[str], rows: Sequence[TaskRow]) -> list[Metric]:
    """Characters of the texts / of the references, of several the one that is nearest in length."""
    statistics = []
    for text, row in zip(texts, rows, strict=True):
        written = len(characters(text))
        expected = min((len(characters(reference)) for reference in row.references), key=lambda n: abs(n - written))
        statistics.append([written, expected])
    return [Metric("length_ratio", np.array(statistics, np.float64), ratio, best=1)]


METRICS: dict[str, Callable[[Sequence[str], Sequence[TaskRow]], list[Metric]]] = {
    "rouge": rouge,
    "chrf": chrf,
    "slots": slots,
    "exact_match": exact_match,
    "repetition": repetition,
    "length": length,
    "couplet": couplet,
}
"""By the name in task.metrics; bleu and verse, which need more than this, stand beside them (task_evaluation.py)."""

FAULTS = ("repeated", "copied", "longest copy", "characters of the first line again")
"""Beginnings of the names of verse metrics where lower is better."""


def means(scores: Sequence[dict[str, float]]) -> list[Metric]:
    return [
        mean(name, [row[name] for row in scores], higher_is_better=not name.startswith(FAULTS)) for name in scores[0]
    ]
