"""What a sweep may be told to try, and what is refused before there is a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modules.config.base import ConfigError
from modules.config.loader import load_config
from modules.config.sweeps.space import Dimension, arguments_of, check_space, read_space, sweep_instead

STAGE = ["train.init_from=models/poems"]


def space_of(*arguments: str) -> list[Dimension]:
    return read_space(load_config("sweep", [*STAGE, "trials=3", *arguments]))


def complaints_of(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_space(load_config("sweep", [*STAGE, *arguments]))
    return caught.value.complaints


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("space.lora.rank=0,8", Dimension("lora.rank", ("0", "8"))),
        ("space.lora.rank=[0, 8]", Dimension("lora.rank", ("0", "8"))),
        ('space={"lora.rank": [0, null]}', Dimension("lora.rank", ("0", "null"))),
        ("space.train.sample_prompts=[[春], [秋, 冬]]", Dimension("train.sample_prompts", ('["春"]', '["秋", "冬"]'))),
        ("space.lora.dropout=0..0.3", Dimension("lora.dropout", low=0, high=0.3)),
        ("space.train.batch_size=8..64", Dimension("train.batch_size", low=8, high=64, whole=True)),
        ("space.train.learning_rate=log 1e-5..1e-2", Dimension("train.learning_rate", low=1e-5, high=1e-2, log=True)),
        ("space.train.learning_rate=log 1e-4..1e-2 in 3",
         Dimension("train.learning_rate", ("0.0001", "0.001", "0.01"))),
        ("space.train.batch_size=1..4 in 7", Dimension("train.batch_size", ("1", "2", "3", "4"))),
        ("space.train.schedule=cosine,constant", Dimension("train.schedule", ("cosine", "constant"))),
        ("space.data=quatrains,poems", Dimension("data", ("quatrains", "poems"))),
    ],
)  # fmt: skip
def test_what_values_mean(argument: str, expected: Dimension) -> None:
    assert space_of(argument) == [expected]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("space.train.larning_rate=1,2", "no such key; did you mean space.train.learning_rate?"),
        ("space.train=1,2", "train is a section"),
        ("space.lora.rank=8", "there is nothing to search"),
        ("space.lora.rank=8,8", "there is nothing to search"),
        ("space.lora.rank=8,,", "there is nothing to search"),
        ("space.train.schedule=1..2", "a range is for a number"),
        ("space.lora.dropout=0.3..0.1", "from the smaller number to the larger"),
        ("space.train.learning_rate=log 0..1", "begins above 0"),
        ("space.train.batch_size=1.5..8", "whole numbers"),
        ("space.lora.dropout=0..0.3 in 1", "give 2 to 1000 values"),
        ("space.seed=1,2", "the winner is trained with several by confirm_seeds"),
        ("space.output_dir=a,b", "each trial has a folder"),
        ("space.tracking.spool_dir=a,b", "it says where runs are recorded"),
        ("space.trainer.devices=1,2", "workers=N trains N trials at a time"),
    ],
)
def test_what_is_no_space_is_refused_with_the_key_and_what_to_write(argument: str, words: str) -> None:
    (complaint,) = complaints_of("trials=3", argument)
    assert complaint.startswith(f"{argument}: ")
    assert words in complaint


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["space.train.batch_size=8,0"], "train.batch_size (0) must be at least 1"),
        (["space.lora.dropout=0..1.5", "trials=2"], "lora.dropout (1.5) must be at least 0 and below 1"),
        (["space.train.optimizer=adamw,sgd"], "train.optimizer=sgd (command line): must be adamw | adafactor | muon"),
        (["space.lora.rank=0,8", "train.seeed=1"], "train.seeed (command line): no such key; did you mean seed?"),
        (["space.lora.rank=0,8", "trainer.devices=2"], "trainer.devices: not for the trials of a sweep: a trial trains "
         "on one device; workers=N trains N trials at a time"),
        (["space.lora.rank=0,8", "lora.rank=4"],
         "space.lora.rank=0,8: lora.rank is given as well; drop it, or the space's"),
        (["space.lora.dropout=0..0.3"], "trials, minutes or tokens must be given: when should the sweep end?"),
        (["space.lora.dropout=0..0.3", "method=grid"], "space.lora.dropout=0..0.3: a grid has no ranges; say how many "
         "values of it: '0..0.3 in 5', or method=tpe"),
    ],
)  # fmt: skip
def test_a_value_that_the_stage_refuses_is_refused_before_the_first_trial(arguments: list[str], complaint: str) -> None:
    found = complaints_of(*arguments)
    assert any(text.startswith(complaint.partition("; did you")[0]) for text in found), found


def test_a_value_is_refused_only_where_no_combination_of_it_is_taken() -> None:
    """batch_size and batch_tokens exclude each other, but each has one of the other's values to go with; where both are
    null the recipe says it."""
    config = load_config("sweep", [*STAGE, "space.train.batch_size=8,null", "space.train.batch_tokens=null,4096"])
    taken = check_space(config)[1]
    assert {tuple(values.values()) for values in taken} == {("8", "null"), ("null", "4096"), ("null", "null")}


def test_a_range_is_drawn_with_three_digits_and_never_beyond_its_ends() -> None:
    dimension = Dimension("train.learning_rate", low=1.2345e-5, high=9.8765e-3, log=True)
    assert dimension.typed(0.000123456) == "0.000123"
    assert dimension.typed(1.2345e-5) == "1.2345e-05"
    assert float(dimension.typed(9.8765e-3)) == 9.8765e-3


def test_the_stages_keys_pass_through_and_the_sweeps_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        "space:\n  train.learning_rate: log 1e-4..1e-2 in 3\nconfirm_seeds: 0\n"
        "train: {max_steps: 7, max_epochs: null}\ndata.columns: {text1: src_txt}\n", encoding="utf-8"
    )  # fmt: skip
    config = load_config("sweep", [f"sweep={tmp_path / 'my.yaml'}", "train.max_steps=9", "data.path=a b.csv", "seed=3"])
    assert (config.confirm_seeds, config.space) == (0, {"train.learning_rate": "log 1e-4..1e-2 in 3"})
    stage = load_config("finetune", [*STAGE, *arguments_of(config, {"train.learning_rate": "0.01"})])
    assert (stage.train.max_steps, stage.train.max_epochs, stage.train.learning_rate) == (9, None, 0.01)
    assert (stage.data.path, stage.data.columns, stage.seed) == ("a b.csv", {"text1": "src_txt"}, 3)


def test_the_learning_rate_finder_takes_every_stage_that_trains() -> None:
    for arguments in (STAGE, ["stage=pretrain"]):
        dimensions, _ = check_space(load_config("sweep", ["sweep=lr", *arguments]))
        assert [float(value) for value in dimensions[0].values][::3] == [1e-5, 0.000316, 0.01]


@pytest.mark.parametrize("name", ["sweep=nothing", "sweep=nothing.yaml"])
def test_a_sweep_that_there_isnt_is_named_beside_those_that_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: no such file or name; must be one of lr, or a YAML file's path"):
        load_config("sweep", [name])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["metric=loss"], "with stage=finetune it is a val/… metric; did you mean val/loss?"),
        (["metric=rougeL"], "with stage=finetune it is a val/… metric; did you mean val/rougeL?"),
        (["stage=main", "metric=test/bleu"], "with stage=main it is a val/… metric; did you mean val/bleu?"),
        (["metric=val/oddness"], "give direction=minimize or maximize"),
        (["keep_models=0"], "keep_models=0: the best trial's folder stays"),
        (["workers=0"], "workers (0) must be at least 1"),
    ],
)
def test_rules_between_keys(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("sweep", arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "goal"),
    [("val/loss", "minimize"), ("val/perplexity_per_char", "minimize"), ("val/end_of_text_found", "maximize"),
     ("val/end_of_text_early", "minimize"), ("val/rougeL", "maximize"), ("val/bleu", "maximize"),
     ("val/slot_error_rate", "minimize"), ("val/distinct_2", "maximize"), ("val/repetition", "minimize")],
)  # fmt: skip
def test_which_way_is_better_is_known_of_our_metrics(metric: str, goal: str) -> None:
    assert load_config("sweep", [f"metric={metric}"]).goal == goal
    assert load_config("sweep", [f"metric={metric}", "direction=maximize"]).goal == "maximize"


@pytest.mark.parametrize(
    ("stage", "arguments", "command"),
    [
        ("finetune", ["train.learning_rate=1e-4,3e-4", *STAGE],
         "python -m pipelines.sweep stage=finetune space.train.learning_rate=1e-4,3e-4 train.init_from=models/poems"),
        ("pretrain", ["--model=tiny,mini", "data.path=a b.csv"],
         "python -m pipelines.sweep stage=pretrain space.model=tiny,mini 'data.path=a b.csv'"),
        ("main", ["finetune.lora.rank=[0,8]"],
         "python -m pipelines.sweep stage=main 'space.finetune.lora.rank=[0,8]'"),
        ("finetune", ["train.schedule=noam", "--train.schedule", "cosine,noam", *STAGE],
         "python -m pipelines.sweep stage=finetune space.train.schedule=cosine,noam train.init_from=models/poems"),
        ("finetune", ["seed=1,2", *STAGE], None),
        ("finetune", ["train.larning_rate=1,2", *STAGE], None),
        ("generate", ["generation.top_k=1,2"], None),
    ],
)  # fmt: skip
def test_several_values_for_a_stages_key_are_told_how_to_sweep(stage: str, arguments: list[str], command: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(stage, arguments)
    found = sweep_instead(stage, arguments, caught.value.complaints)
    assert found == command
    if command:
        import shlex

        load_config("sweep", shlex.split(command)[3:])


@pytest.mark.parametrize(
    ("arguments", "select_by"),
    [
        (["metric=val/rougeL"], ["train.select_by=rougeL"]),
        (["metric=val/rougeL", "train.select_by=val/rougeL"], ["train.select_by=val/rougeL"]),
        (["metric=val/rouge1", "task=question_generation", "train.select_by=bleu"], ["train.select_by=bleu"]),
        (["metric=val/perplexity_per_char"], []),
        (["metric=val/perplexity_per_char", "train.select_by=rougeL"], ["train.select_by=rougeL"]),
    ],
)
def test_a_measure_of_texts_is_what_checkpoints_are_chosen_by(arguments: list[str], select_by: list[str]) -> None:
    config = load_config("sweep", [*STAGE, "space.lora.rank=0,8", *arguments])
    check_space(config)
    assert [one for one in arguments_of(config) if one.startswith("train.select_by")] == select_by


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["metric=val/rougeL", "train.select_by=val/loss"], "by these trials; give train.select_by=rougeL"),
        (["metric=val/rougeL", "train.select_by=bleu"], "by these trials; give train.select_by=rougeL"),
        (["metric=val/perplexity_per_chr"], "did you mean perplexity_per_char?; there is val/loss, val/perplexity"),
    ],
)  # fmt: skip
def test_a_metric_that_trials_do_not_have_is_refused_before_there_is_one(arguments: list[str], words: str) -> None:
    (complaint,) = complaints_of("space.lora.rank=0,8", *arguments)
    assert words in complaint


def test_trials_of_main_are_judged_by_what_its_finetune_measures() -> None:
    """The test rows are for the model that is chosen in the end."""
    space = ["stage=main", "space.finetune.lora.rank=0,8", "metric=val/rougeL"]
    config = load_config("sweep", space)
    check_space(config)
    assert arguments_of(config) == ["finetune.train.select_by=rougeL"]
    with pytest.raises(ConfigError, match=r"val/rougeL isn't .*give finetune\.train\.select_by=rougeL"):
        check_space(load_config("sweep", [*space, "finetune.train.select_by=val/loss"]))


@pytest.mark.parametrize(
    "key", ["space.register.level=0.05,0.1", "space.evaluate.ngram_floor=true,false", "space.model_name=a,b"]
)
def test_keys_that_trials_of_main_never_come_to_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: trials of main end with finetune, which this key doesn't change"):
        check_space(load_config("sweep", ["stage=main", key]))


@pytest.mark.parametrize("metric", ["val/loss", "val/perplexity"])
@pytest.mark.parametrize(
    "key",
    [["stage=pretrain", "space.tokenizer.vocab_size=1000,4000"],
     ["stage=main", "from_scratch=true", "space.pretrain.tokenizer.kind=character,bpe"]],
)  # fmt: skip
def test_losses_per_token_are_not_compared_between_tokenizers(metric: str, key: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"per token, .*: give metric=val/perplexity_per_char"):
        check_space(load_config("sweep", [*key, f"metric={metric}"]))
    check_space(load_config("sweep", [*key, "metric=val/perplexity_per_char"]))
