"""What `mlflow run .` does before it starts: whose weights it begins with, and what it refuses."""

from __future__ import annotations

import pytest

from modules.config import load_config
from pipelines.main import refuse_unused, wire


@pytest.mark.parametrize(
    ("argument", "key"), [("model=base", "model"), ("model.hidden_size=64", "model"), ("pretrain.seed=7", None),
                          ("pretrain.train.max_steps=3", "pretrain"), ("pretrain.output_dir=out", "pretrain")],
)  # fmt: skip
def test_what_is_said_of_a_pretraining_needs_one(argument: str, key: str | None) -> None:
    refuse_unused(load_config("main", [argument, "from_scratch=true"]))
    if key is None:
        refuse_unused(load_config("main", [argument]))  # seeds are for all stages at once
        return
    with pytest.raises(ValueError, match=rf"^{key}: .*from_scratch=true .*models/poems is fine-tuned$"):
        refuse_unused(load_config("main", [argument]))


def test_the_same_model_is_fine_tuned_and_compared_with() -> None:
    config = load_config("main")
    made = {"prepare": "data", "start": "models/poems", "finetune": "models:/m-1"}
    assert wire(config.finetune, made).train.init_from == "models/poems"
    assert wire(config.evaluate, made).baseline == "models/poems"
    assert config.evaluate.model == "models:/m-1"
