from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.evaluation.baselines import NgramModel, ngram_floors
from modules.training.validation import perplexity_per_character

POEMS = ["白日依山尽，黄河入海流。", "欲穷千里目，更上一层楼。", "白发三千丈，缘愁似个长。"]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("context", ["", "白", "白日", "尽，", "一二", "黄河入海流。"])
def test_probabilities_sum_to_one_after_any_context(order: int, context: str) -> None:
    distribution = NgramModel(order).fit(POEMS).next_distribution(context)
    assert math.isclose(sum(distribution.values()), 1, rel_tol=1e-12)
    assert {"", None, "白"} <= distribution.keys()
    assert min(distribution.values()) > 0


def test_bigram_by_hand() -> None:
    # Training text 甲乙甲: symbols 甲, 乙, end, unknown. Unigrams: 甲 2, 乙 1, end 1 of 4, three types.
    model = NgramModel(2, discount=0.5).fit(["甲乙甲"])
    left_over = 0.5 * 3 / 4 / 4
    first, second, end = 1.5 / 4 + left_over, 0.5 / 4 + left_over, 0.5 / 4 + left_over
    assert model.next_distribution("")["甲"] == pytest.approx((0.5 + 0.5 * first) / 1)
    assert model.next_distribution("甲")["乙"] == pytest.approx((0.5 + 0.5 * 2 * second) / 2)
    assert model.next_distribution("甲")["甲"] == pytest.approx(0.5 * 2 * first / 2)
    assert model.next_distribution("甲")[""] == pytest.approx((0.5 + 0.5 * 2 * end) / 2)
    assert model.next_distribution("甲")[None] == pytest.approx(0.5 * 2 * left_over / 2)
    assert model.next_distribution("丙")["甲"] == pytest.approx(first)  # a history never seen backs off whole


def test_perplexity_counts_each_character_and_each_end() -> None:
    model = NgramModel(3).fit(POEMS)
    texts = ["白日，", "千里"]
    total = sum(map(model.negative_log_likelihood, texts))
    assert ngram_floors(POEMS, texts)["trigram"].value == pytest.approx(math.exp(total / (3 + 2 + 2)))
    with pytest.raises(ValueError, match="at least one row"):
        perplexity_per_character(0.0, 0, 0)


@settings(max_examples=30, deadline=None)
@given(st.text("白日依山尽，未", max_size=8), st.data())
def test_likelihood_is_the_product_of_next_distributions_from_start_on(text: str, data: st.DataObject) -> None:
    model = NgramModel(3).fit(POEMS)
    start = data.draw(st.integers(0, len(text)))
    expected = 0.0
    for index in range(start, len(text) + 1):
        distribution = model.next_distribution(text[:index])
        expected -= math.log(distribution.get(text[index : index + 1], distribution[None]))
    assert model.negative_log_likelihood(text, start) == pytest.approx(expected)


def test_a_longer_history_explains_seen_text_better() -> None:
    floors = ngram_floors(POEMS, POEMS[:1])
    assert floors["unigram"].value > floors["bigram"].value > floors["trigram"].value > 1


def test_a_target_alone_can_be_scored_after_its_prompt() -> None:
    floors = ngram_floors(POEMS, POEMS[:1], starts=[3])
    model = NgramModel(3).fit(POEMS)
    after = model.negative_log_likelihood(POEMS[0]) - model.negative_log_likelihood(POEMS[0], 3)
    whole = model.negative_log_likelihood(POEMS[0])
    assert floors["trigram"].value == pytest.approx(math.exp((whole - after) / (len(POEMS[0]) - 3 + 1)))


def test_texts_do_not_run_into_one_another() -> None:
    assert NgramModel(3).fit(["甲乙", "丙"]).next_distribution("乙")["丙"] < 0.2
    assert NgramModel(3).fit(["甲乙丙"]).next_distribution("乙")["丙"] < 0.5  # 乙 alone, not 甲乙, is the history


@pytest.mark.parametrize(("order", "discount", "named"), [(0, 0.75, "order"), (4, 0.75, "order"), (2, 1.0, "discount")])
def test_impossible_settings_are_named(order: int, discount: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        NgramModel(order, discount)


def test_misuse_is_explained() -> None:
    with pytest.raises(ValueError, match="fit"):
        NgramModel(2).row_losses(["白"])
    with pytest.raises(ValueError, match="empty"):
        NgramModel(2).fit([])
    with pytest.raises(ValueError, match="start"):
        NgramModel(2).fit(POEMS).negative_log_likelihood("白日", start=3)
