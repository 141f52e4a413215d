"""ModelScope's checkpoints against what its own classes answer, and everything that may be wrong with one.

data/modelscope: random weights, and the logits, losses and tokens that ModelScope 2.0.0 gave for them.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modules.checkpoint import formats
from modules.checkpoint.loading import load_model, open_model, verify_model
from modules.checkpoint.weights import CheckpointError
from modules.config.generation import GenerationConfig
from modules.config.model import ModelConfig
from modules.model.sampling import generate
from modules.system.atomic import new_folder
from modules.tokenizer.tokenizer import load_tokenizer
from tests.helpers.models import ROOT

DATA = ROOT / "tests" / "files" / "modelscope"
SAMPLES = ["base", "base_prefixed", "megatron_tp1", "megatron_tp2"]
RECUT = [("megatron_tp2", 1), ("megatron_tp2", 2), ("megatron_tp2", 4), ("megatron_tp1", 2)]


def expected_of(sample: str) -> dict[str, np.ndarray]:
    return dict(np.load(DATA / f"{sample.removesuffix('_prefixed')}.npz"))


def recut(sample: str, folder: Path, parts: int) -> Path:
    """A sample, read and written again in so many shards."""
    with new_folder(folder, "a model folder") as draft:
        formats.write(
            draft, "megatron", open_model(DATA / sample), load_tokenizer(DATA / sample), tensor_parallel=parts
        )
    return folder


@pytest.fixture(params=[*SAMPLES, *RECUT], ids=str)
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder, as it was made by ModelScope or cut anew by us, and what ModelScope answers."""
    if isinstance(request.param, str):
        return DATA / request.param, expected_of(request.param)
    sample, parts = request.param
    return recut(sample, tmp_path / "recut", parts), expected_of(sample)


# --- the same answers ---


def test_logits_and_losses_equal_the_reference(reference: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, expected = reference
    with torch.no_grad():
        logits = load_model(folder)(torch.from_numpy(expected["input_ids"]))
    # A wrong GELU would differ by 1e-3, a wrong QKV order by 4.
    np.testing.assert_allclose(logits.numpy(), expected["logits"], atol=1e-5, rtol=0)
    labels = torch.from_numpy(expected["labels"])
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    if "loss" in expected:
        assert float(losses.mean()) == pytest.approx(float(expected["loss"]), abs=1e-5)
        np.testing.assert_allclose(logits.numpy(), expected["logits_prefixed"], atol=1e-5, rtol=0)
    else:
        np.testing.assert_allclose(losses.numpy(), expected["token_losses"], atol=1e-5, rtol=0)
        assert source_target_loss(losses, expected) == pytest.approx(float(expected["loss_src_tgt"]), abs=1e-5)


def source_target_loss(losses: torch.Tensor, expected: dict[str, np.ndarray]) -> float:
    """The mean over the tokens of all targets, each with its end."""
    spans = zip(losses, expected["prompts_len"], expected["inputs_len"], strict=True)
    return float(torch.cat([row[prompt - 1 : whole - 1] for row, prompt, whole in spans]).mean())


def test_greedy_tokens_equal_the_reference(reference: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, expected = reference
    prompt = expected["input_ids"][0, :8].tolist()
    config = GenerationConfig(temperature=0.0, max_new_tokens=32)
    tokens = [token for _, token in generate(load_model(folder), [prompt], config, end_of_text_id=-1)]
    assert prompt + [token for token in tokens if token is not None] == expected["greedy"][0].tolist()


def test_the_architecture_is_what_the_folder_says() -> None:
    base = ModelConfig(
        vocab_size=128,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    assert open_model(DATA / "base").config == base
    megatron = dataclasses.replace(base, hidden_act="gelu_new", layer_norm_eps=1e-5)
    assert open_model(DATA / "megatron_tp2").config == megatron


def test_what_config_json_does_not_say_has_the_original_s_defaults(tmp_path: Path) -> None:
    folder = copy_of("megatron_tp2", tmp_path)
    keep = {
        "num_attention_heads": 4,
        "intermediate_size": 3072,
        "bias_gelu_fusion": False,
    }  # a wrong width, as published
    (folder / "config.json").write_text(json.dumps(keep))
    config = open_model(folder).config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (128, 64, 2)
    assert (config.max_position_embeddings, config.layer_norm_eps, config.hidden_act) == (64, 1e-12, "gelu")


def test_a_vocabulary_may_be_shorter_than_the_model_s() -> None:
    assert load_tokenizer(DATA / "megatron_tp1").vocab_size < 128


# --- strictness ---


def copy_of(sample: str, folder: Path) -> Path:
    return Path(shutil.copytree(DATA / sample, folder / sample))


def change_weights(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = torch.load(path, weights_only=True)
    change(content.get("module", content))
    torch.save(content, path)


def change_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


BASE, SHARD_0, SHARD_1 = "pytorch_model.bin", *(f"model/mp_rank_0{rank}_model_states.pt" for rank in (0, 1))
NORM = "language_model.transformer.final_layernorm.bias"
MLP = "language_model.encoder.layers.1.mlp.dense_h_to_4h.weight"


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        (BASE, lambda w: w.pop(NORM), "transformer.final_layernorm.bias is missing"),
        (BASE, lambda w: w.update({"language_model.lm_head": torch.zeros(2)}), "lm_head is not part of this"),
        (
            BASE,
            lambda w: w.update({NORM: torch.zeros(63)}),
            r"transformer.final_layernorm.bias is \(63,\), not \(64,\)",
        ),
        (BASE, lambda w: w.update({"step": 3}), "step is no tensor"),
        (BASE, lambda w: w.update({NORM: torch.zeros(64, dtype=torch.int64)}), "bias holds torch.int64, not real num"),
        (SHARD_0, lambda w: w.pop(MLP), "encoder.layers.1.mlp.dense_h_to_4h.weight is missing"),
        (SHARD_1, lambda w: w.pop(MLP), "encoder.layers.1.mlp.dense_h_to_4h.weight"),
        (SHARD_1, lambda w: w.update({"language_model.more": torch.zeros(2)}), "more is not part of this"),
        (SHARD_1, lambda w: w.update({MLP: w[MLP].half()}), "dense_h_to_4h.weight is torch.float16, but torch.float32"),
    ],
)
def test_weights_that_do_not_fit_are_named_with_their_file(
    file: str, change: Callable[[Any], Any], complaint: str, tmp_path: Path
) -> None:
    folder = copy_of("base" if file == BASE else "megatron_tp2", tmp_path)
    change_weights(folder / file, change)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        open_model(folder)
    assert file in str(caught.value)


def test_an_mlp_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = copy_of("megatron_tp2", tmp_path)
    for rank in (SHARD_0, SHARD_1):
        change_weights(folder / rank, lambda w: w.update({MLP: w[MLP][:100].clone()}))
    with pytest.raises(CheckpointError, match=r"dense_h_to_4h.weight is \(200, 64\), not 4·hidden_size \(256\) wide"):
        open_model(folder)


@pytest.mark.parametrize("changed", [0.5, -0.0])
def test_shards_that_disagree_are_refused(changed: float, tmp_path: Path) -> None:
    """A replicated tensor differs, if only in the sign of a zero."""
    folder = copy_of("megatron_tp2", tmp_path)
    name = "language_model.encoder.layers.0.self_attention.dense.bias"
    for rank, value in ((SHARD_0, 0.0), (SHARD_1, changed)):
        change_weights(folder / rank, lambda w, value=value: w[name].__setitem__(3, value))  # type: ignore[misc]
    with pytest.raises(CheckpointError, match=rf"{SHARD_1}: encoder.*0.self_attention.dense.bias differs from that in"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: (f / SHARD_1).unlink(), f"{SHARD_1} is missing"),
        (lambda f: (f / SHARD_0).unlink(), f"{SHARD_0} is missing"),
        (lambda f: (f / SHARD_1).rename(f / SHARD_1.replace("01", "02")), f"{SHARD_1} is missing"),
        (lambda f: shutil.copy(f / SHARD_1, f / SHARD_1.replace("01", "02")), "3 shards, but .*parallel_size=2"),
        (lambda f: shutil.rmtree(f / "model"), f"{SHARD_0} is missing"),
        (lambda f: (f / "config.json").unlink(), "nor has it a config.json"),
        (lambda f: change_json(f / "config.json", num_attention_heads=3), r"hidden_size \(64\) must be divisible"),
        (lambda f: change_json(f / "config.json", num_attention_heads=1), r"shards \(2\) must divide num_attention_he"),
        (lambda f: change_json(f / "config.json", num_attention_heads=None), "num_attention_heads is missing"),
        (lambda f: change_json(f / "config.json", num_attention_heads="4"), "must be a number, not '4'"),
        (lambda f: change_json(f / "config.json", num_hidden_layers=3), "encoder.layers.2.*bias is missing"),
        (lambda f: change_json(f / "config.json", vocab_size=256), r"word_embeddings.weight is \(64, 64\), not \(128,"),
        (lambda f: (f / SHARD_1).write_bytes((f / SHARD_1).read_bytes()[:-100]), f"{SHARD_1} is damaged"),
        (lambda f: (f / SHARD_1).write_bytes(b""), f"{SHARD_1} is damaged"),
        (lambda f: (f / SHARD_1).write_text("version https://git-lfs"), f"{SHARD_1} is damaged"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(change: Callable[[Path], Any], complaint: str, tmp_path: Path) -> None:
    folder = copy_of("megatron_tp2", tmp_path)
    change(folder)
    with pytest.raises(CheckpointError, match=complaint):
        open_model(folder)


def test_legacy_pickles_are_read_too(tmp_path: Path) -> None:
    """As torch.save wrote them before 1.6."""
    folder = copy_of("base", tmp_path)
    content = torch.load(folder / BASE, weights_only=True)
    torch.save(content, folder / BASE, _use_new_zipfile_serialization=False)
    loaded, expected = load_model(folder).state_dict(), load_model(DATA / "base").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())
    (folder / BASE).write_bytes((folder / BASE).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        open_model(folder)


def test_what_is_loaded_is_not_tied_to_the_file(tmp_path: Path) -> None:
    folder = copy_of("base", tmp_path)
    before = (folder / BASE).read_bytes()
    with torch.no_grad():
        for parameter in load_model(folder).parameters():
            parameter.zero_()
    assert (folder / BASE).read_bytes() == before


def test_a_foreign_folder_cannot_be_verified_but_says_what_to_do() -> None:
    with pytest.raises(CheckpointError, match="is a megatron checkpoint.*python -m pipelines.convert source="):
        verify_model(DATA / "megatron_tp1")
