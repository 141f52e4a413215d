"""What `mlflow run .` does before it starts: whose weights it begins with, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from modules.config.loader import load_config
from pipelines.main import check_unused, main


@pytest.mark.parametrize(
    ("argument", "key"), [("model=base", "model"), ("model.hidden_size=64", "model"), ("pretrain.seed=7", None),
                          ("pretrain.train.max_steps=3", "pretrain"), ("pretrain.output_dir=out", "pretrain")],
)  # fmt: skip
def test_what_is_said_of_a_pretraining_needs_one(argument: str, key: str | None) -> None:
    check_unused(load_config("main", [argument, "from_scratch=true"]))
    if key is None:
        check_unused(load_config("main", [argument]))  # seeds are for all stages at once
        return
    with pytest.raises(ValueError, match=rf"^{key}: .*from_scratch=true .*without it nothing is pretrained$"):
        check_unused(load_config("main", [argument]))


@dataclass
class Always:
    """Stands in for Once: each stage's double says what is kept of it."""

    run: Callable[[], Any] | None
    forced: frozenset[str]

    def __call__(self, _: str, config: Any, function: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return function(config)


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ([], "models/poems"),
        (["from_scratch=true"], "pretrained"),
        (["finetune.train.init_from=models:/moyun@champion"], "models:/moyun@champion"),
    ],
)
def test_the_same_model_is_fine_tuned_and_compared_with(
    arguments: list[str], start: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        "prepare": {"folder": "data"},
        "pretrain": {"folder": "pretrained"},
        "finetune": {"model_uri": "models:/m-1"},
        "evaluate": {"scores": {}},
        "register": {"version": "7"},
    }
    stages = {name: Mock(return_value=made.get(name)) for name in (*made, "show_whole_way")}
    for name, stage in stages.items():
        monkeypatch.setattr(f"pipelines.{'main' if name == 'show_whole_way' else name}.{name}", stage)
    monkeypatch.setattr("pipelines.main.Once", Always)
    main(load_config("main", [*arguments, "tracking.log_system_metrics=false"]))
    (tuned,), (evaluated,) = stages["finetune"].call_args.args, stages["evaluate"].call_args.args
    assert tuned.train.init_from == start
    assert (evaluated.model, evaluated.baseline) == ("models:/m-1", start)
    assert stages["pretrain"].called == (start == "pretrained")
