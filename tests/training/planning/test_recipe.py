from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from modules.config.loader import load_config
from modules.config.model import ModelConfig
from modules.config.training import TrainingConfig
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from modules.training.planning.recipe import (
    KEYS,
    Sizes,
    is_prepared_verse,
    learning_rate_for,
    own_values,
    row_sizes,
    settle_recipe,
    sizes_of,
    starting_loss,
)
from modules.training.setup import choose_tokenizers
from tests.helpers.models import ROOT

WINDOW = 64
START = "train.init_from=models/poems"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["春夏秋冬"], min_frequency=1).with_prompt_template("{src_txt}春")


def model() -> ModelConfig:
    return ModelConfig(
        hidden_size=256, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=WINDOW, vocab_size=300
    )


def pairs(*lengths: int) -> datasets.Dataset:
    """Rows with sources of so many characters and answers of one: so many tokens and 4 have a loss or are read."""
    return datasets.Dataset.from_dict(
        {"src_txt": ["夏" * length for length in lengths], "tgt_txt": ["秋"] * len(lengths)}
    )


def settled(tokenizer: Tokenizer, rows: datasets.Dataset, *arguments: str) -> tuple[TrainingConfig, str]:
    config = load_config("finetune", [START, "data.path=mine.csv", *arguments])
    return config, str(settle_recipe(config, model(), [(rows, tokenizer)]))


def values_of(config: TrainingConfig) -> dict[str, Any]:
    return {key: getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) for key in KEYS}


@pytest.mark.parametrize(
    ("count", "batch", "epochs"),
    [(16, 1, 3), (90, 3, 3), (500, 16, 3), (2_000, 16, 3), (20_000, 16, 3), (60_000, 16, 2), (1_000_000, 16, 1)],
)
def test_rows_say_how_many_a_step_takes_and_how_often_they_come(count: int, batch: int, epochs: int) -> None:
    found = own_values(load_config("finetune", [START]), model(), [Sizes(np.full(10, 5), count)])
    assert (found["train.batch_size"], found["train.max_epochs"]) == (batch, epochs)
    assert found["train.warmup_steps"] == min(100, -(-count // batch) * epochs // 10)


def test_of_a_mixture_the_rows_of_an_epoch_count(tokenizer: Tokenizer) -> None:
    """Of many rows beside few, few are read while these are read once: their number and length hardly matter."""
    few, many = pairs(*[10] * 58, *[40] * 2), datasets.Dataset.from_dict({"src_txt": ["春夏秋冬" * 25] * 9_000})
    config = load_config("finetune", [START, "data.mix=[{path: few, weight: 0.9}, {path: many, weight: 0.1}]"])
    sizes = sizes_of(config, [(few, tokenizer), (many, tokenizer)])
    assert [each.rows for each in sizes] == [60, 1]  # 60 rows of two trained tokens, and a ninth of that
    found = own_values(config, model(), sizes)
    assert (found["train.max_epochs"], found["train.batch_size"], found["data.sequence_length"]) == (3, 2, 16)
    by_size = load_config("finetune", [START, "data.mix=[{path: few}, {path: many}]"])
    assert [each.rows for each in sizes_of(by_size, [(few, tokenizer), (many, tokenizer)])] == [60, 9_000]


def test_how_new_a_mixture_is_goes_by_its_weights(poems: dict[str, list[str]]) -> None:
    folder = ROOT / "models" / "poems"
    tokenizer = load_tokenizer(folder)
    verse, modern = (
        (datasets.Dataset.from_dict({"src_txt": texts}), tokenizer) for texts in (poems["test"], ["接口返回列表。"] * 5)
    )
    known, new = (starting_loss(folder, [each], 128) for each in (verse, modern))
    assert starting_loss(folder, [verse, modern], 128, [0.9, 0.1]) == pytest.approx(0.9 * known + 0.1 * new)


def test_the_rate_falls_with_the_models_width_and_rises_with_what_is_new_to_it() -> None:
    assert [learning_rate_for(256, False, newness) for newness in (0.2, 0.5, 0.65, 0.8, 1.1)] == [
        1e-4, 1e-4, 3.2e-4, 1e-3, 1e-3,
    ]  # fmt: skip
    assert [learning_rate_for(width, False) for width in (256, 1024, 2048)] == [1e-4, 5e-5, 3.5e-5]
    assert [learning_rate_for(width, False, 1.0) for width in (256, 1024, 2048)] == [1e-3, 2.5e-4, 1.3e-4]
    assert [learning_rate_for(width, True) for width in (16, 256, 2048)] == [2e-3, 1e-3, 3.5e-4]


def test_verse_is_known_to_the_model_that_comes_with_moyun_and_modern_text_is_new(poems: dict[str, list[str]]) -> None:
    folder = ROOT / "models" / "poems"
    tokenizer = load_tokenizer(folder)
    verse = datasets.Dataset.from_dict({"src_txt": poems["test"]})
    modern = datasets.Dataset.from_dict({"src_txt": ["这个接口返回一个列表，参数的默认值可以在配置文件里修改。"] * 5})
    assert starting_loss(folder, [(verse, tokenizer)], 128) < 0.55 * math.log(9000)
    assert starting_loss(folder, [(modern, tokenizer)], 128) > 0.75 * math.log(9000)


def test_a_document_is_as_long_as_nearly_all_rows_and_no_longer_than_the_window(tokenizer: Tokenizer) -> None:
    few_are_long, most_are_long = pairs(*[10] * 95, *[50] * 5), pairs(*[10] * 50, *[90] * 50)
    assert row_sizes(few_are_long, tokenizer)[0].tolist() == [13] * 95 + [53] * 5
    assert settled(tokenizer, few_are_long)[0].data.sequence_length == 16
    assert settled(tokenizer, most_are_long)[0].data.sequence_length == WINDOW
    assert settled(tokenizer, most_are_long, "data.sequence_length=48")[0].data.sequence_length == 48


def test_long_plain_text_is_split_and_pairs_are_cut(tokenizer: Tokenizer) -> None:
    plain = datasets.Dataset.from_dict({"src_txt": ["夏" * 200]})
    assert settled(tokenizer, plain)[0].data.over_long == "split"
    assert settled(tokenizer, pairs(200))[0].data.over_long == "cut"
    assert settled(tokenizer, plain, "data.over_long=cut")[0].data.over_long == "cut"


def test_what_is_given_stands(tokenizer: Tokenizer) -> None:
    given = [
        "data.sequence_length=32", "data.over_long=split", "train.learning_rate=1e-5", "train.schedule=wsd",
        "train.warmup_steps=7", "train.batch_tokens=64", "train.max_steps=9",
    ]  # fmt: skip
    config, said = settled(tokenizer, pairs(5), *given)
    assert said == "none: all is given"
    assert list(values_of(config).values()) == [32, "split", 1e-5, "wsd", 7, None, None]
    config, said = settled(tokenizer, pairs(5), *given[1:])
    assert said.endswith(": data.sequence_length")
    assert config.filled == ("data.sequence_length",)


def prepared(folder: Path, files: list[str]) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"files": {name: {"rows": 1} for name in files}}))
    return folder


def test_verse_that_prepare_makes_gets_the_original_cards_recipe_and_other_rows_their_own(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    card = {
        "data.sequence_length": 128, "data.over_long": "cut", "train.learning_rate": 3e-4, "train.schedule": "noam",
        "train.warmup_steps": 100, "train.batch_size": 16, "train.max_epochs": 10,
    }  # fmt: skip
    verse = prepared(tmp_path / "sample", ["quatrains/train.jsonl.gz"])
    mine = prepared(tmp_path / "quatrains", ["train.jsonl.gz"])
    assert is_prepared_verse(str(verse / "quatrains"))
    assert not any(map(is_prepared_verse, (None, str(mine), str(verse), str(tmp_path / "quatrains.csv"))))
    for arguments, expected in (
        ([f"data.path={verse / 'quatrains'}"], card),
        ([f"data.path={verse / 'quatrains'}", "train.learning_rate=1"], card | {"train.learning_rate": 1.0}),
        ([f"data.path={mine}", "recipe=poetry"], card),
    ):
        config, said = settled(tokenizer, pairs(5), *arguments)
        assert values_of(config) == expected
        assert said.startswith("poetry")
    config, said = settled(tokenizer, pairs(5), f"data.path={mine}")
    assert said.startswith("own")
    assert values_of(config)["train.schedule"] == "cosine"


def test_fresh_weights_have_their_sizes_rate_and_batch(tokenizer: Tokenizer) -> None:
    config = load_config("finetune", ["model=tiny", "data.path=mine.csv"])
    settle_recipe(config, model(), [(pairs(5), tokenizer)])
    train = config.train
    assert (train.learning_rate, train.batch_size, train.max_epochs) == (None, None, 3)


def test_answers_are_parted_from_their_sources_where_no_template_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """After a whole text a model that continues texts ends: without a sign it answers nothing."""
    tokenizer.with_prompt_template(None).save(tmp_path)
    config = load_config("finetune", [START])
    for rows, template in ((pairs(1), "{src_txt}\n"), (pairs(1).remove_columns("tgt_txt"), None)):
        assert choose_tokenizers(config, tmp_path, {"train": rows})[""].prompt_template == template


def test_how_another_training_cut_its_sources_is_nothing_to_a_tokenizer_that_is_taken_on(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.with_source_limit(3).save(tmp_path)
    for stage, start, key in (("pretrain", None, "model=tiny"), ("finetune", tmp_path, START)):
        path = [] if start else [f"tokenizer.path={tmp_path}"]
        found = choose_tokenizers(load_config(stage, [key, *path]), start, {"train": pairs(9)})[""]
        assert (found.prompt_template, found.source_limit) == ("{src_txt}春", None)
