"""Metrics of generated texts against the packages that define them, and against counting by hand."""

from __future__ import annotations

import random

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import BootstrapAggregator
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from modules.config.evaluation import TEXT_METRICS
from modules.evaluation.baselines import nearest, trivial_answers
from modules.evaluation.metrics import METRICS, bleu, chrf, exact_match, length, repetition, rouge, slots
from modules.evaluation.statistics import Metric
from modules.evaluation.task_rows import TaskRow, first_sentence

LINES = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。 the quick brown fox 2026"
ROUGE = ["rouge1", "rouge2", "rougeL"]


class Characters:
    """What rouge_score takes for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return [character for character in text if not character.isspace()]


def drawn(rows: int, references: int) -> tuple[list[str], list[TaskRow]]:
    """Texts that share much or nothing with their references; one is empty, one a single character."""
    rng = random.Random(3)

    def text() -> str:
        start = rng.randrange(len(LINES) - 4)
        return LINES[start : start + rng.randrange(4, 30)]

    found = [TaskRow("", [text() for _ in range(rng.randint(1, references))]) for _ in range(rows)]
    return ["", "山", *[text() for _ in range(rows - 2)]], found


def values(metrics: list[Metric]) -> dict[str, float]:
    return {metric.name: metric.value for metric in metrics}


@pytest.mark.parametrize("references", [1, 3])
def test_rouge_is_that_of_rouge_score(references: int) -> None:
    texts, rows = drawn(60, references)
    scorer, aggregator = RougeScorer(ROUGE, tokenizer=Characters()), BootstrapAggregator()
    for text, row in zip(texts, rows, strict=True):
        aggregator.add_scores(scorer.score_multi(row.references, text))
    np.random.seed(0)  # which the package draws from
    expected = {name: found.mid.fmeasure for name, found in aggregator.aggregate().items()}
    found = rouge(texts, rows)
    first = [scorer.score_multi(row.references, text) for text, row in zip(texts, rows, strict=True)]
    for measure in found:
        assert measure.of_rows() == pytest.approx([scores[measure.name].fmeasure for scores in first])
        assert measure.value == pytest.approx(np.mean([scores[measure.name].fmeasure for scores in first]))
        # The package's aggregate is the median of its resamples: near the mean, not equal to it.
        assert measure.value == pytest.approx(expected[measure.name], abs=0.02)


@given(st.text("白日依山 a", max_size=12), st.text("白日依山 a", max_size=12).filter(str.strip))
def test_rouge_of_any_two_texts_is_that_of_rouge_score(text: str, reference: str) -> None:
    expected = RougeScorer(ROUGE, tokenizer=Characters()).score(reference, text)
    found = values(rouge([text], [TaskRow("", [reference])]))
    assert found == pytest.approx({name: score.fmeasure for name, score in expected.items()})


@pytest.mark.parametrize("tokenize", ["zh", "char", "13a"])
@pytest.mark.parametrize("references", [1, 3])
def test_bleu_is_sacrebleus_corpus_score(tokenize: str, references: int) -> None:
    texts, rows = drawn(60, references)
    streams = [[row.references[i] if i < len(row.references) else None for row in rows] for i in range(references)]
    (measure,) = bleu(texts, rows, tokenize)
    assert measure.value == pytest.approx(BLEU(tokenize=tokenize).corpus_score(texts, streams).score)
    resampled = [5, 5, 9, 0, 30, 31, 31, 31]
    again = BLEU(tokenize=tokenize).corpus_score(
        [texts[i] for i in resampled], [[stream[i] for i in resampled] for stream in streams]
    )
    assert measure.value_of(measure.statistics[resampled].sum(0)) == pytest.approx(again.score)


@pytest.mark.parametrize("text", ["白日依", "白日", "火", "", "白日依山火"])
def test_bleu_without_matches_of_some_order_is_smoothed_as_sacrebleu_does(text: str) -> None:
    (measure,) = bleu([text], [TaskRow("", ["白日依山尽，黄河"])], "char")
    expected = BLEU(tokenize="char").corpus_score([text], [["白日依山尽，黄河"]]).score
    assert measure.value == pytest.approx(expected)


@pytest.mark.parametrize("references", [1, 3])
def test_chrf_is_sacrebleus_corpus_score(references: int) -> None:
    texts, rows = drawn(60, references)
    streams = [[row.references[i] if i < len(row.references) else None for row in rows] for i in range(references)]
    (measure,) = chrf(texts, rows)
    assert measure.value == pytest.approx(CHRF().corpus_score(texts, streams).score)
    resampled = [5, 5, 9, 0, 30, 31, 31, 31]
    again = CHRF().corpus_score([texts[i] for i in resampled], [[stream[i] for i in resampled] for stream in streams])
    assert measure.value_of(measure.statistics[resampled].sum(0)) == pytest.approx(again.score)
    alone = [CHRF().sentence_score(text, row.references).score for text, row in zip(texts, rows, strict=True)]
    assert measure.of_rows() == pytest.approx(alone)


@pytest.mark.parametrize("text", ["白日依", "白", "火", "", "白日依山火", "白日依山尽，黄河", "白日 依山"])
def test_chrf_of_short_texts_is_of_the_orders_that_there_are(text: str) -> None:
    (measure,) = chrf([text], [TaskRow("", ["白日依山尽，黄河"])])
    assert measure.value == pytest.approx(CHRF().corpus_score([text], [["白日依山尽，黄河"]]).score)


def test_a_slot_is_one_token_of_bleu() -> None:
    rows = [TaskRow("", ["我要去[景点+名称1]，票价[票价]"], ["[景点+名称1]", "[票价]"])]
    (measure,) = bleu(["我要去[景点+名称]，票价[票价]"], rows)
    ours, theirs = "我要去[景点+名称]，票价 A", "我要去 B，票价 A"
    assert measure.value == pytest.approx(BLEU(tokenize="zh").corpus_score([ours], [[theirs]]).score)
    assert measure.statistics[0, 1] == 8


def test_slot_errors_are_what_is_missing_and_what_belongs_to_others() -> None:
    rows = [
        TaskRow("", ["价格是[价格]"], ["[价格]"]),
        TaskRow("", ["[名称]在[地址]"], ["[名称]", "[地址]"]),
        TaskRow("", ["你好，北京饭店见"], []),
        TaskRow("", ["北京饭店"], ["北京饭店"]),
        TaskRow("", ["北京"], ["北京"]),
    ]
    (measure,) = slots(["[价格]和[地址]", "在[地址]", "北京饭店见", "北京，不去", "北京饭店"], rows)
    assert measure.statistics.tolist() == [[1, 1], [1, 2], [0, 0], [1, 1], [1, 1]]
    assert measure.value == pytest.approx(4 / 5)
    assert not measure.higher_is_better


def test_counts_by_hand() -> None:
    rows = [TaskRow("", ["春风", "春风来"]), TaskRow("", ["山"])]
    texts = [" 春风来\n", "山山山山山山"]
    assert exact_match(texts, rows)[0].of_rows().tolist() == [1, 0]
    assert length(texts, rows)[0].value == pytest.approx((3 + 6) / (3 + 1))
    assert length(texts, rows)[0].best == 1
    assert values(repetition(texts, rows)) == pytest.approx({"distinct_2": (2 + 1) / (2 + 5), "repetition": 2 / 3})


def test_every_metric_takes_texts_that_are_empty() -> None:
    rows = [TaskRow("甲", ["乙"], ["丙丁"])]
    found = values([*rouge([""], rows), *bleu([""], rows), *slots([""], rows), *exact_match([""], rows)])
    assert found == {"rouge1": 0, "rouge2": 0, "rougeL": 0, "bleu": 0, "slot_error_rate": 1, "exact_match": 0}
    assert length([""], rows)[0].value == 0


# --- trivial answers ---


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("从前有座山。山里有庙。", "从前有座山。"),
        ("\n 第一行\n第二行", "第一行"),
        ("没有标点", "没有标点"),
        ("！？", "！？"),
    ],
)
def test_the_lead_is_the_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_trivial_answers() -> None:

    train = datasets.Dataset.from_dict({"src_txt": ["狐狸和葡萄", "龟兔赛跑"], "tgt_txt": ["酸", "慢"]})
    rows = [TaskRow("龟和兔赛跑。兔睡了。", ["别骄傲"]), TaskRow("葡萄", ["酸"])]
    assert trivial_answers("lead", rows, None) == ["龟和兔赛跑。", "葡萄"]
    assert trivial_answers("copy", rows, None) == ["龟和兔赛跑。兔睡了。", "葡萄"]
    assert trivial_answers("nearest", rows, train) == ["慢", "酸"]
    twice = datasets.Dataset.from_dict({"src_txt": ["a", "b", "c"], "tgt_txt": ["慢", "酸", "酸"]})
    assert trivial_answers("most_frequent", rows, twice) == ["酸", "酸"]
    with pytest.raises(ValueError, match="nearest needs training rows"):
        trivial_answers("nearest", rows, None)


@given(st.lists(st.text("甲乙丙丁", min_size=1, max_size=6), min_size=1, max_size=6), st.text("甲乙丙丁戊", min_size=1))
def test_the_nearest_text_shares_the_largest_part_of_all_characters(others: list[str], source: str) -> None:
    overlap = [len(set(source) & set(text)) / len(set(source) | set(text)) for text in others]
    assert nearest([source], others) == [overlap.index(max(overlap))]


def test_configuration_names_what_there_is() -> None:
    assert {*METRICS, "bleu", "verse"} == set(TEXT_METRICS)
