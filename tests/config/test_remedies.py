"""What a configuration that can't be meant is told: numbers without sense, ${…}, keys without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modules.config.commands import STAGES
from modules.config.generation import GenerationConfig
from modules.config.loader import ConfigError, load_config
from modules.config.schema import keys

TUNED = ["train.init_from=folder"]


def complaints_of(stage: str, *arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(stage, arguments)
    return caught.value.complaints


def numbers(stage: str, *kinds: type) -> list[str]:
    found = keys(STAGES[stage])
    return [
        key.name
        for key in found
        if key.type in [*kinds, *(kind | None for kind in kinds)] and not key.name.startswith(("model.", "lora."))
    ]


@pytest.mark.parametrize("digits", ["9" * 23, "-" + "9" * 23, "9" * 400])
def test_a_whole_number_of_many_digits_is_refused_in_a_line(digits: str) -> None:
    for stage, arguments in (("pretrain", []), ("evaluate", []), ("serve", []), ("generate", [])):
        for key in numbers(stage, int, float):
            found = complaints_of(stage, *arguments, f"{key}={digits}")
            assert any(complaint.startswith(key) for complaint in found), (key, found)
            assert not any("\n" in complaint for complaint in found)


@pytest.mark.parametrize("text", ["inf", "-inf", "1e300", "nan"])
def test_a_number_that_is_none_is_refused(text: str) -> None:
    for key in numbers("pretrain", float):
        assert any(found.startswith(key) for found in complaints_of("pretrain", f"{key}={text}"))


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "temperature", "seed", "repetition_penalty"])
def test_so_are_requests_and_calls(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} \(9+.*\) must be"):
        GenerationConfig.parse({name: 10**23 - 1})


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("data.path: ${HOME}/x", "data.path: Interpolation key 'HOME' not found; "),
        ("data.prompt_template: '问：${src_txt}'", "data.prompt_template: Interpolation key 'src_txt' not found; "),
        ("seed: ${x", "seed: no viable alternative at input '${x'; "),
        ("train.sample_prompts: ['${']", "train.sample_prompts[0]: no viable alternative at input '${'; "),
        ("data.path: ${data.path}", "data.path: Recursive interpolation detected; "),
    ],
)
def test_what_is_looked_up_and_not_there_is_told_how_to_be_written(line: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(line, encoding="utf-8")
    (found,) = complaints_of("pretrain", f"config={tmp_path / 'mine.yaml'}")
    assert complaint in found
    assert r"\${…} is the text ${…} itself" in found


def test_it_is_written_so_indeed(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data.path: \\${x}/y\ntrain.sample_prompts: ['\\${x}']\n", encoding="utf-8")
    config = load_config("pretrain", [f"config={tmp_path / 'mine.yaml'}", "data.prompt_template={src_txt}${x}"])
    assert (config.train.sample_prompts, config.data.prompt_template) == (["${x}"], "{src_txt}${x}")


@pytest.mark.parametrize(
    ("stage", "arguments", "complaint"),
    [
        ("finetune", [*TUNED, "tokenizer.kind=bpe"], "tokenizer.kind has no effect with train.init_from=folder"),
        ("finetune", [*TUNED, "tokenizer.path=t"], "tokenizer.path has no effect with train.init_from=folder"),
        ("main", ["finetune.tokenizer.vocab_size=300"], "finetune.tokenizer.vocab_size has no effect with train.init_"),
        (
            "pretrain",
            ["tokenizer.path=t", "tokenizer.min_frequency=1"],
            "tokenizer.min_frequency has no effect with path",
        ),
    ],
)
def test_a_key_without_effect_is_refused(stage: str, arguments: list[str], complaint: str) -> None:
    (found,) = complaints_of(stage, *arguments)
    assert found.startswith(complaint)


def test_keys_with_effect_are_not(tmp_path: Path) -> None:
    for arguments in ([], ["tokenizer.path=t"], ["tokenizer.kind=bpe", "tokenizer.vocab_size=999"]):
        config: Any = load_config("pretrain", arguments)
        assert config.train.init_from is None
