from __future__ import annotations

import re
from typing import Any

import datasets
import pytest

from modules.config.model import SizeConfig
from modules.config.training import TrainConfig, TrainingConfig
from modules.data.datamodule import TextDataModule
from modules.data.splits import load_splits
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer, train_tokenizer
from modules.training.optimizer import learning_rate_factor
from modules.training.planning.plan import TrainingPlan, batch_of, make_plan, peak_learning_rate

TEXTS = [f"春夏秋{digit}" for digit in "零一二三四五六七八九"]
"""Ten rows of four characters: with start and end six ids, five inputs, five of them trained on."""
SIZE = SizeConfig(
    hidden_size=8, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16, vocab_size=300,
    learning_rate=0.25, batch_tokens=10,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, min_frequency=1)


def plan_of(tokenizer: Tokenizer, data: dict[str, Any] | None = None, **train: Any) -> TrainingPlan:
    config = TrainingConfig(model=SIZE, train=TrainConfig(**train))
    for key, value in {"sequence_length": 16, **(data or {})}.items():
        setattr(config.data, key, value)
    splits = {"train": datasets.Dataset.from_dict({"src_txt": TEXTS})}
    module = TextDataModule(splits, tokenizer, config.data, **batch_of(config.train, config.model))
    return make_plan(config, SIZE, module)


def test_a_tiny_example_counted_by_hand(tokenizer: Tokenizer) -> None:
    plan = plan_of(tokenizer, batch_size=4, max_epochs=2)
    assert (plan.rows, plan.rows_cut, plan.rows_split) == (10, 0, 0)
    assert plan.tokens_per_epoch == 50
    assert plan.steps_per_epoch == 3  # 4 + 4 + 2 rows
    assert plan.total_steps == 6
    assert plan.describe()["tokens a step"] == "17"  # 50 / 3
    assert plan.parameters == sum(parameter.numel() for parameter in Decoder(SIZE).parameters())
    memory = plan.demand.memory()
    assert memory.weights == memory.gradients == memory.optimizer / 2 == 4 * plan.parameters


@pytest.mark.parametrize(
    ("train", "steps_per_epoch", "total_steps"),
    [
        ({"batch_size": 4, "max_steps": 7}, 3, 7),
        ({"batch_size": 4, "max_steps": 7, "max_epochs": 2}, 3, 6),
        ({"batch_size": 4, "max_steps": 5, "max_epochs": 2}, 3, 5),
        ({"batch_size": 10, "max_epochs": 3}, 1, 3),
        ({"batch_size": 99, "max_epochs": 3}, 1, 3),
        ({"batch_tokens": 15, "max_epochs": 1}, 4, 4),  # three rows of five inputs
        ({"batch_tokens": 1, "max_epochs": 1}, 10, 10),  # no fewer than one row a step
        ({"max_epochs": 1}, 5, 5),  # the size's own 10 tokens
    ],
)
def test_steps(tokenizer: Tokenizer, train: dict[str, Any], steps_per_epoch: int, total_steps: int) -> None:
    plan = plan_of(tokenizer, **train)
    assert (plan.steps_per_epoch, plan.total_steps) == (steps_per_epoch, total_steps)


def test_the_plans_steps_are_what_is_served(tokenizer: Tokenizer) -> None:
    config = TrainingConfig(model=SIZE, train=TrainConfig(batch_size=3, max_epochs=1))
    config.data.sequence_length, config.data.validation_fraction = 16, 0.1
    splits = load_splits(config.data, 0, {"src_txt": TEXTS})
    module = TextDataModule(splits, tokenizer, config.data, **batch_of(config.train, config.model))
    plan, steps = make_plan(config, SIZE, module), list(module.train_dataloader())
    assert len(steps) == plan.steps_per_epoch == 3
    assert sum(step.trained_tokens for step in steps) == plan.tokens_per_epoch == 45


@pytest.mark.parametrize(
    ("over_long", "steps", "tokens"),
    [("cut", 3, 30), ("split", 5, 50)],  # three inputs at most: 3, or 3 + 2, so 10 or 20 documents
)
def test_rows_that_are_too_long_are_counted(tokenizer: Tokenizer, over_long: str, steps: int, tokens: int) -> None:
    plan = plan_of(tokenizer, {"sequence_length": 3, "over_long": over_long}, batch_size=4, max_epochs=1)
    assert (plan.steps_per_epoch, plan.tokens_per_epoch) == (steps, tokens)
    assert (plan.rows_cut, plan.rows_split) == ((10, 0) if over_long == "cut" else (0, 10))
    assert f"10 (over-long: {plan.rows_split} split, {plan.rows_cut} cut)" in plan.describe().values()


def test_one_pass_holds_no_more_than_micro_batch_tokens_or_the_longest_row(tokenizer: Tokenizer) -> None:
    """2 tokens are less than a row, 20 are four rows, 4096 more than a step has: 10 and what a row may add."""
    kept = [
        plan_of(tokenizer, max_epochs=1, batch_tokens=50, micro_batch_tokens=tokens).demand.memory().activations
        for tokens in (2, 20, 4096)
    ]
    assert [bytes_ / kept[0] for bytes_ in kept] == [1, 4, 10]


def test_the_plan_is_told_in_words(tokenizer: Tokenizer) -> None:
    lines = plan_of(tokenizer, batch_size=4, max_steps=4, warmup_steps=4).describe()
    assert lines["rows"] == "10 (over-long: none)"
    assert (lines["tokens an epoch"], lines["tokens a step"]) == ("50 read, 50 trained on", "17")
    assert lines["steps"] == "4 (1.33 epochs)"
    assert lines["learning rate"] == "0.25"
    assert re.match(r"\d+ MiB at a step's peak", lines["memory a device"])
    assert lines["  weights"] == lines["  gradients"] == "0 MiB"
    assert lines["  optimizer"] == "0 MiB (adamw)"
    assert plan_of(tokenizer, batch_size=4, max_steps=4, optimizer="muon").describe()["  optimizer"] == "0 MiB (muon)"


def test_a_rate_that_is_never_reached_is_told(tokenizer: Tokenizer) -> None:
    lines = plan_of(tokenizer, batch_size=4, max_steps=4, warmup_steps=5).describe()
    assert lines["learning rate"] == "0.25, not reached: the run ends in its 5 steps of warm-up (train.warmup_steps)"


def test_noams_peak_is_that_of_the_rate_and_not_of_its_factor(tokenizer: Tokenizer) -> None:
    plan = plan_of(tokenizer, batch_size=4, max_steps=8, warmup_steps=4, schedule="noam")
    assert plan.describe()["learning rate"] == "0.125 at most (noam: 0.25 · warmup^-0.5)"
    train = TrainConfig(schedule="noam", warmup_steps=4)
    rates = [plan.learning_rate * learning_rate_factor(step, train, 8) for step in range(8)]
    assert max(rates) == 0.125


# --- what the size says, and what must be said without one ---


def test_the_learning_rate_falls_back_to_the_sizes_own() -> None:
    assert peak_learning_rate(TrainingConfig(model=SIZE)) == 0.25
    assert peak_learning_rate(TrainingConfig(model=SIZE, train=TrainConfig(learning_rate=3e-4))) == 3e-4
    from_folder = TrainingConfig(train=TrainConfig(init_from="folder", learning_rate=3e-4))
    assert peak_learning_rate(from_folder) == 3e-4


def test_the_batch_falls_back_to_the_sizes_own() -> None:
    assert batch_of(TrainConfig(), SIZE) == {"batch_size": None, "batch_tokens": 10}
    assert batch_of(TrainConfig(batch_size=3), SIZE) == {"batch_size": 3, "batch_tokens": None}
    assert batch_of(TrainConfig(batch_tokens=30), SIZE) == {"batch_size": None, "batch_tokens": 30}
    assert batch_of(TrainConfig(batch_size=3), None) == {"batch_size": 3, "batch_tokens": None}
