"""What each key changes is said in one table, which knows every key and no other."""

from __future__ import annotations

import dataclasses

import pytest

from modules.config.commands import STAGES, MainConfig
from modules.config.effects.key_effects import TABLE, Effect, effect_of, effects
from modules.config.evaluation import EvaluateConfig
from modules.config.schema import keys
from modules.config.training import TrainingConfig


@pytest.mark.parametrize("stage", [name for name in STAGES if STAGES[name].__module__.startswith("modules.")])
def test_every_key_has_its_place(stage: str) -> None:
    leaves = {key.name for key in keys(STAGES[stage]) if not key.section}
    assert leaves <= effects(STAGES[stage]).keys()


def test_the_table_names_no_field_twice_and_none_that_is_not_there() -> None:
    for section, row in TABLE.items():
        named = [name for names in row.values() for name in names.split()]
        assert len(named) == len(set(named)), section
        assert set(named) <= {field.name for field in dataclasses.fields(section)}, section


@pytest.mark.parametrize(
    ("config_class", "key", "effect"),
    [
        (TrainingConfig, "train.learning_rate", Effect.RESULT),
        (TrainingConfig, "train.micro_batch_tokens", Effect.RECORD),
        (TrainingConfig, "generation.seed", Effect.RECORD),  # samples on the way change nothing that is learnt
        (EvaluateConfig, "generation.seed", Effect.RESULT),  # here texts are scored
        (TrainingConfig, "data.columns.text1", Effect.CONTENT),
        (TrainingConfig, "data.mix.0.weight", Effect.RESULT),
        (TrainingConfig, "data.mix.0.path", Effect.CONTENT),
        (MainConfig, "finetune.data.mix.1.columns.text1", Effect.CONTENT),
        (TrainingConfig, "tracking.run_name", Effect.NOTHING),
        (MainConfig, "finetune.data.cache_dir", Effect.NOTHING),
        (MainConfig, "prepare.seed", Effect.NOTHING),
        (MainConfig, "finetune.seed", Effect.RESULT),
        (TrainingConfig, "train.a_key_of_a_later_version", Effect.RESULT),
    ],
)
def test_a_section_s_word_holds_below_it(config_class: type, key: str, effect: Effect) -> None:
    assert effect_of(config_class)(key) is effect
