from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.evaluation.baselines import END, NgramModel, ngram_floors

POEMS = ["白日依山尽，黄河入海流。", "欲穷千里目，更上一层楼。", "白发三千丈，缘愁似个长。"]


def next_distribution(model: NgramModel, context: str) -> dict[str | None, float]:
    """Probability of each character known after `context`; "" is the end of text, None any unknown character."""
    sequence, positions = model._lay_out([context])
    history = sequence[positions[-1] - model.order + 1 : positions[-1]]
    width = len(history) + 1
    rows = np.tile(np.append(history, 0), (model.symbols, 1))
    rows[:, -1] = np.arange(END, END + model.symbols)
    ends = np.arange(model.symbols) * width + width - 1
    names: list[str | None] = ["", None, *model.characters]
    return dict(zip(names, model._probabilities(rows.ravel(), ends).tolist(), strict=True))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("context", ["", "白", "白日", "尽，", "一二", "黄河入海流。"])
def test_probabilities_sum_to_one_after_any_context(order: int, context: str) -> None:
    distribution = next_distribution(NgramModel(order).fit(POEMS), context)
    assert math.isclose(sum(distribution.values()), 1, rel_tol=1e-12)
    assert {"", None, "白"} <= distribution.keys()
    assert min(distribution.values()) > 0


def test_bigram_by_hand() -> None:
    # Training text 甲乙甲: symbols 甲, 乙, end, unknown. Unigrams: 甲 2, 乙 1, end 1 of 4, three types.
    model = NgramModel(2, discount=0.5).fit(["甲乙甲"])
    left_over = 0.5 * 3 / 4 / 4
    first, second, end = 1.5 / 4 + left_over, 0.5 / 4 + left_over, 0.5 / 4 + left_over
    assert next_distribution(model, "")["甲"] == pytest.approx((0.5 + 0.5 * first) / 1)
    assert next_distribution(model, "甲")["乙"] == pytest.approx((0.5 + 0.5 * 2 * second) / 2)
    assert next_distribution(model, "甲")["甲"] == pytest.approx(0.5 * 2 * first / 2)
    assert next_distribution(model, "甲")[""] == pytest.approx((0.5 + 0.5 * 2 * end) / 2)
    assert next_distribution(model, "甲")[None] == pytest.approx(0.5 * 2 * left_over / 2)
    assert next_distribution(model, "丙")["甲"] == pytest.approx(first)  # a history never seen backs off whole


def test_perplexity_counts_each_character_and_each_end() -> None:
    model = NgramModel(3).fit(POEMS)
    texts = ["白日，", "千里"]
    total = float(model.row_losses(texts).sum())
    assert ngram_floors(POEMS, texts)["trigram"].value == pytest.approx(math.exp(total / (3 + 2 + 2)))
    with pytest.raises(ValueError, match="at least one row"):
        ngram_floors(POEMS, [])


@settings(max_examples=30, deadline=None)
@given(st.text("白日依山尽，未", max_size=8), st.data())
def test_likelihood_is_the_product_of_next_distributions_from_start_on(text: str, data: st.DataObject) -> None:
    model = NgramModel(3).fit(POEMS)
    start = data.draw(st.integers(0, len(text)))
    expected = 0.0
    for index in range(start, len(text) + 1):
        distribution = next_distribution(model, text[:index])
        expected -= math.log(distribution.get(text[index : index + 1], distribution[None]))
    assert float(model.row_losses([text], [start])[0]) == pytest.approx(expected)


def test_a_longer_history_explains_seen_text_better() -> None:
    floors = ngram_floors(POEMS, POEMS[:1])
    assert floors["unigram"].value > floors["bigram"].value > floors["trigram"].value > 1


def test_a_target_alone_can_be_scored_after_its_prompt() -> None:
    floors = ngram_floors(POEMS, POEMS[:1], starts=[3])
    model = NgramModel(3).fit(POEMS)
    after = float(model.row_losses([POEMS[0]])[0]) - float(model.row_losses([POEMS[0]], [3])[0])
    whole = float(model.row_losses([POEMS[0]])[0])
    assert floors["trigram"].value == pytest.approx(math.exp((whole - after) / (len(POEMS[0]) - 3 + 1)))


def test_texts_do_not_run_into_one_another() -> None:
    assert next_distribution(NgramModel(3).fit(["甲乙", "丙"]), "乙")["丙"] < 0.2
    assert next_distribution(NgramModel(3).fit(["甲乙丙"]), "乙")["丙"] < 0.5  # 乙 alone, not 甲乙, is the history


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
        NgramModel(2).fit(POEMS).row_losses(["白日"], [3])
