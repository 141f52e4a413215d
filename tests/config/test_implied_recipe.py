from __future__ import annotations

import pytest

from modules.config.loader import load_config


@pytest.mark.parametrize(
    ("arguments", "steps", "rate"),
    [
        ([], 500, 1e-4),
        (["prepare.source=full", "finetune.data=couplets"], 500, 1e-4),
        (["prepare.source=mine.csv"], None, None),
        (["prepare.source=summarization", "finetune.data=summarization"], None, None),
        (["finetune.data.path=mine.csv"], None, None),
        (["finetune.data.mix=[{path: mine.csv}]", "evaluate.data.path=a", "register.data.path=a"], None, None),
        (["prepare.source=mine.csv", "finetune.train.max_steps=7"], 7, None),
        (["prepare.source=mine.csv", "finetune.train.learning_rate=1e-3"], None, 1e-3),
    ],
)
def test_mains_short_training_is_for_the_bundled_verse_alone(
    arguments: list[str], steps: int | None, rate: float | None
) -> None:
    train = load_config("main", arguments).finetune.train
    assert (train.max_steps, train.learning_rate) == (steps, rate)
    assert (train.schedule, train.validate_every_n_steps) == (("cosine", 250) if steps == 500 else (None, None))
