"""The first cases of tests/workflow/fuzz.py; `make fuzz` runs thousands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from modules.checkpoint.weights import CheckpointError, safetensors_files
from modules.config.loader import ConfigError, load_model_config
from modules.tokenizer.tokenizer import load_tokenizer
from tests.helpers.models import make_config
from tests.workflow.fuzz import Fuzzer

KINDS = [
    "adapter", "huggingface", "huggingface_bin", "megatron", "megatron_tp2", "modelscope", "moyun", "moyun_shards",
    "requests", "run",
]  # fmt: skip


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Fuzzer:
    return Fuzzer(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_in_words_or_does_no_harm(fuzzer: Fuzzer, kind: str) -> None:
    assert {*fuzzer.kinds, "requests"} == set(KINDS)
    outcomes = {fuzzer.run(kind, number)[1] for number in range(50)}
    assert "refused" in outcomes


def bomb(depth: int = 9) -> str:
    """A kilobyte that unfolds to 9^depth texts."""
    lines = ["hidden_size: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (bomb(), "holds an anchor, a tag or"),
        ("hidden_size: !!python/object/apply:os.system ['touch canary']\n", "holds an anchor, a tag or"),
        ("hidden_size: !!python/object/apply:pathlib.Path [a]\n", "holds an anchor, a tag or"),
        ("hidden_size: ${oc.env:HOME}\n", "holds an anchor, a tag or"),
        ("[" * 9_000, "nested too deeply"),
        ("a: b: c\n", "not valid YAML"),
        ("x" * 2_000_000, "over 200,000 bytes"),
        ("- a\n", "must hold `key: value` lines"),
    ],
)
def test_a_model_yaml_holds_plain_values_alone(text: str, reason: str, store: Path) -> None:
    path = store / "model.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load_model_config(path)
    assert not (store / "canary").exists()


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": 10**9}, {"hidden_size": 2**62, "num_attention_heads": 1}, {"vocab_size": 10**12}],
    ids=str,
)
def test_sizes_that_nobody_can_compute_with_are_refused_at_once(change: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(asdict(make_config(300)) | change))
    with pytest.raises(ConfigError, match=f"{next(iter(change))}.* must be at most"):
        load_model_config(path)


def test_files_far_too_large_are_not_read(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"):
        path = tmp_path / name
        path.write_text(
            '{"kind": "bpe", "end_of_text": "x", "start": null}'
        ) if name == "tokenizer_config.json" else None
        with path.open("ab") as file:
            file.truncate(file.tell() if name == "tokenizer_config.json" else 20_000_000_000)
    with pytest.raises(ValueError, match=r"tokenizer\.json is over 200,000,000 bytes"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=r"index\.json is over 200,000,000 bytes"):
        safetensors_files(tmp_path)
