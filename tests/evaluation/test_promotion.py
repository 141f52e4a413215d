"""Who gets the alias, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np

from modules.config.loader import load_config
from modules.evaluation.likelihood import score
from modules.evaluation.promotion import decide
from modules.evaluation.statistics import Metric, perplexity
from modules.tokenizer.tokenizer import Tokenizer, train_tokenizer
from pipelines.register import register
from tests.helpers.models import make_config, make_decoder, save_model


def test_models_with_other_tokenizers_are_measured_on_the_same_characters(
    tokenizer: Tokenizer, rows: datasets.Dataset
) -> None:
    other = train_tokenizer(rows["src_txt"], "bpe", 600)
    metrics = [score(make_decoder(make_config(t.vocab_size)), t, rows).perplexity_per_char for t in (tokenizer, other)]
    assert (metrics[0].statistics[:, 1] == metrics[1].statistics[:, 1]).all()
    assert decide(metrics[0], metrics[1], "1").comparison


def test_a_registration_tests_groups_of_rows(store: Path, tokenizer: Tokenizer) -> None:
    """Two rows of each of ten poems are ten poems to the test."""
    rows = [
        {"src_txt": text, "group": number // 2}
        for number, text in enumerate(["春眠", "不觉", "晓处", "处闻", "啼鸟", "夜来"] * 3 + ["风雨", "声花"])
    ]
    (store / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for seed in (1, 2):
        folder = save_model(store / f"{seed}", make_decoder(make_config(tokenizer.vocab_size), seed), tokenizer, {})
        arguments = [f"model={folder}", "data.path=null", "data.test_path=rows.jsonl"]
        done = register(load_config("register", [*arguments, "tracking.log_system_metrics=false"]))
        assert done
        assert "20 test rows in 10 groups" in done.promotion.reason


def measure(shift: float = 0.0, noise: float = 0.0, rows: int = 300) -> Metric:
    rng = np.random.default_rng(0)
    characters = rng.integers(5, 60, rows)
    nll = rng.gamma(20.0, 0.25, rows) * characters
    return perplexity("p", nll + characters * (shift + noise * np.random.default_rng(1).normal(size=rows)), characters)


def test_better_moves_the_alias_and_worse_does_not() -> None:
    moved = decide(measure(-0.05, 0.1), measure(), "3")
    assert (moved.promoted, moved.verdict) == (True, "better")
    assert moved.reason.startswith("moved to it from version 3: better, ")
    kept = decide(measure(0.05, 0.1), measure(), "3")
    assert (kept.promoted, kept.verdict) == (False, "worse")
    assert kept.reason.startswith("stays with version 3: worse, ")
    assert {"promotion/difference", "promotion/p_value", "promotion/power"} <= kept.metrics().keys()


def test_undecided_stays_and_says_what_these_rows_could_have_shown() -> None:
    found = decide(measure(-0.001, 0.1), measure(), "3")
    assert (found.promoted, found.verdict) == (False, "undecided")
    assert found.comparison
    assert found.comparison.difference < 0
    assert f"a difference of {found.comparison.detectable:.2g}" in found.reason


def test_the_same_model_again_stays_with_its_holder() -> None:
    found = decide(measure(), measure(), "1")
    assert not found.promoted
    assert found.reason.startswith("stays with version 1: undecided, as it scores the same on every one of the 300")


def test_a_stricter_level_asks_for_more() -> None:
    new = measure(-0.02, 0.1)
    assert decide(new, measure(), "1", level=0.05).promoted
    assert not decide(new, measure(), "1", level=0.0001).promoted


def test_nothing_is_promoted_that_has_no_score() -> None:
    broken = perplexity("p", np.full(300, np.nan), measure().statistics[:, 1])
    assert not decide(broken, measure(), "1").promoted


def test_the_first_is_given_it_and_few_rows_are_said_to_be_few() -> None:
    assert decide(measure(), None, None).reason == f"given to it, as the first (p {measure().value:.1f})"
    assert "12 test rows alone" in decide(measure(rows=12), None, None).reason
