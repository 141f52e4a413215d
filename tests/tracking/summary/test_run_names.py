"""A run is called by what was given to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from modules.config.base import ConfigError
from modules.config.loader import load_config
from modules.tracking.stage_run import stage_run
from modules.tracking.summary.run_names import LONGEST, run_name
from modules.tracking.summary.run_notes import command
from tests.tracking.test_tracking import all_runs, quiet

ID = "0123456789abcdef" * 2
FROM = "train.init_from=models/poems"


@pytest.mark.parametrize(
    ("stage", "arguments", "name"),
    [
        ("prepare", [], "prepare"),
        ("prepare", ["source=texts/my.csv"], "prepare my"),
        ("pretrain", [], "pretrain"),
        ("pretrain", ["output_dir=x", "trainer.devices=2", "train.save_top_k=3", "generation.top_p=0.5"], "pretrain"),
        ("pretrain", ["model=base", "train.max_steps=100"], "pretrain base steps=100"),
        ("pretrain", ["model=base", "model.num_hidden_layers=2"], "pretrain base num_hidden_layers=2"),
        ("sweep", ["space.lora.rank=0,8", "trials=2", FROM], "sweep rank=0,8 trials=2"),
        ("register", ["model=a", "guard.perplexity_per_char=0.02"], "register a perplexity_per_char=0.02"),
        ("finetune", [FROM, "train.learning_rate=1e-3", "lora.rank=8"], "finetune from=poems lr=1e-3 rank=8"),
        ("finetune", [FROM, "data=couplets", "train.learning_rate=2.5e-4"], "finetune couplets from=poems lr=2.5e-4"),
        ("finetune", [f"train.init_from=outputs/pretrain-{ID}/model"], "finetune from=pretrain-01234567"),
        ("evaluate", ["model=models/poems"], "evaluate poems"),
        ("evaluate", [f"model=models:/m-{ID}", "task=poetry"], "evaluate poetry m-01234567"),
        ("register", ["model=outputs/mine/model", "model_name=mine"], "register mine"),
        ("main", ["seed=7", "finetune.train.learning_rate=0.02"], "main seed=7 lr=0.02"),
        ("main", ["from_scratch=true", "model=mini"], "main mini from_scratch=true"),
        ("finetune", [FROM, "tracking.run_name=the best one"], "the best one"),
    ],
)
def test_a_name_says_what_was_given_that_changes_results(stage: str, arguments: list[str], name: str) -> None:
    assert run_name(stage, load_config(stage, arguments)) == name


def test_a_name_is_short_and_says_where_it_leaves_something_out() -> None:
    keys = ["max_steps", "warmup_steps", "batch_size", "validate_every_n_steps", "early_stopping_patience"]
    name = run_name("pretrain", load_config("pretrain", [f"train.{key}=1234567" for key in keys]))
    assert name.endswith(" …")
    assert len(name) <= LONGEST + 2


def test_a_number_format_that_was_found_is_no_difference() -> None:
    from modules.training.precision import settle_precision

    settle_precision((config := load_config("pretrain")).trainer)
    assert config.trainer.precision != "auto"
    assert run_name("pretrain", config) == "pretrain"
    config.trainer.precision = "16-mixed" if config.trainer.precision != "16-mixed" else "bf16-true"
    assert run_name("pretrain", config) == f"pretrain precision={config.trainer.precision}"


def test_a_stage_of_main_says_what_it_has_otherwise_than_in_main() -> None:
    config = load_config("main", ["finetune.train.max_steps=3", "tracking.run_name=all of it"])
    assert run_name("main", config) == "all of it"
    assert run_name("finetune", config.finetune, "main", "all of it") == "finetune steps=3"
    config.finetune.tracking.run_name = "a part"
    assert run_name("finetune", config.finetune, "main", "all of it") == "a part"


def test_the_name_given_to_mlflow_run_wins_and_one_that_it_made_up_does_not(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    for given, expected in (("my-rate-3", "my-rate-3"), ("bold-fox-123", "prepare"), (None, "prepare")):
        made = client.create_run(client.create_experiment(str(given)), run_name=given)
        monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
        with stage_run("prepare", quiet()) as run:
            assert run.info.run_id == made.info.run_id
        assert client.get_run(made.info.run_id).info.run_name == expected
    assert len(all_runs()) == 3


@pytest.mark.parametrize("name", ["a\nb", "春" * 251])
def test_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking.run_name \(.*must be one line of at most 250 characters"):
        load_config("prepare", [f"tracking.run_name='{name}'"])


@pytest.mark.parametrize(
    ("stage", "arguments"),
    [
        ("finetune", [FROM, "data=couplets", "train.learning_rate=0.00025", "lora.rank=8"]),
        ("finetune", [FROM, r"data.prompt_template={src_txt}\n问：", "train.sample_prompts=['a b', 春]"]),
        ("pretrain", ["model=base", "model.num_hidden_layers=2", "train.max_epochs=null", "train.max_steps=5"]),
        ("finetune", ["model=base", "model.num_hidden_layers=2", "data=couplets"]),
        ("sweep", ["space.lora.rank=0,8", FROM, r"data.prompt_template={src_txt}\n", "seed=3", "workers=2"]),
        ("register", ["model=models/poems", "guard.perplexity_per_char=0.02"]),
        ("evaluate", ["model=models/poems", "task=poetry", "task.rows=3"]),
        ("main", ["from_scratch=true", "model=mini", "evaluate.task=poetry", "finetune.train.max_steps=3"]),
        ("sweep", ["space.train.batch_size=[8, 16]", FROM, r"data.prompt_template={src_txt}\n问 ：", "task=couplets"]),
    ],
)
def test_the_command_in_a_description_makes_the_same_configuration(stage: str, arguments: list[str]) -> None:
    import shlex

    config = load_config(stage, arguments)
    assert load_config(stage, shlex.split(" ".join(command(stage, config)))[3:]) == config
