from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modules.checkpoint.loading import load_model, load_verified, verify_model
from modules.checkpoint.model_folder import FILES
from modules.checkpoint.verification import GOLDEN_PROMPT
from modules.checkpoint.weights import CheckpointError
from modules.config.loader import ConfigError
from modules.config.model import ModelConfig
from modules.model.attention import Layout
from modules.model.decoder import Decoder, LMHead, build_decoder
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.helpers.models import make_config, make_decoder, save_model

RUN = {"run_id": "abc", "note": "春", "data": {"train": None}}


@pytest.fixture(scope="module")
def decoder(tokenizer: Tokenizer) -> Decoder:
    return make_decoder(make_config(tokenizer.vocab_size))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, decoder: Decoder, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    return save_model(folder, decoder, tokenizer.with_prompt_template("问：{src_txt}\n"), RUN)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "model")


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_model_folder_holds_just_what_it_should(saved: Path, folder: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == ["model"]  # no draft beside it
    names = ["golden.safetensors", "model.safetensors", "model.yaml", "run.yaml"]
    names += ["tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in folder.iterdir()) == names == sorted([*FILES, "model.safetensors"])
    assert yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8")) == RUN


def test_no_file_is_a_pickle_or_an_archive(folder: Path) -> None:
    for path in folder.iterdir():
        content = path.read_bytes()
        if path.suffix == ".safetensors":  # eight bytes of length, then JSON, then numbers
            json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        else:
            assert not content.startswith((b"\x80", b"PK", b"\x1f\x8b"))
            yaml.safe_load(content.decode())  # JSON is YAML


def test_a_model_comes_back_bit_by_bit(folder: Path, decoder: Decoder, tokenizer: Tokenizer) -> None:
    loaded = load_model(folder)
    assert loaded.config == decoder.config
    assert not loaded.training
    expected = decoder.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    back = load_tokenizer(folder)
    assert back.encode_prompt("春风") == tokenizer.with_prompt_template("问：{src_txt}\n").encode_prompt("春风")
    assert verify_model(folder) == 0.0


def test_other_number_formats_come_back_too(tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer) -> None:
    folder = save_model(tmp_path / "half", copy.deepcopy(decoder).to(torch.bfloat16), tokenizer, {})
    assert {tensor.dtype for tensor in load_model(folder).state_dict().values()} == {torch.bfloat16}
    assert verify_model(folder) == 0.0


def test_a_bf16_model_verifies_on_other_kernels(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Logits rounded to bf16 would differ by more than the tolerance."""
    decoder = make_decoder(make_config(tokenizer.vocab_size, hidden_size=512)).to(torch.bfloat16)
    folder = save_model(tmp_path / "half", decoder, tokenizer, {})
    with torch.backends.mkldnn.flags(enabled=False):
        assert verify_model(folder) <= 1e-3
    assert (
        load_file(folder / "golden.safetensors")["logits"]
        .bfloat16()
        .float()
        .ne(load_file(folder / "golden.safetensors")["logits"])
        .any()
    )


def test_what_is_loaded_is_not_tied_to_the_file(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in load_model(folder).parameters():
            parameter.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_saving_leaves_the_decoder_as_it_was(tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer) -> None:
    training = copy.deepcopy(decoder).train()
    save_model(tmp_path / "model", training, tokenizer, {})
    assert training.training


def test_the_golden_logits_are_of_the_next_token(folder: Path, decoder: Decoder, tokenizer: Tokenizer) -> None:
    found = load_file(folder / "golden.safetensors")
    ids = tokenizer.with_prompt_template("问：{src_txt}\n").encode_prompt(GOLDEN_PROMPT)
    assert found["input_ids"].tolist() == [ids]
    torch.testing.assert_close(found["logits"], decoder(torch.tensor([ids]))[0, -1])


class OtherDecoder(Decoder):
    """Of another structure: no learned positions, a gate in the MLP's place of each layer, a scale of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        del self.position_embeddings
        self.scale = torch.nn.Parameter(torch.full((config.hidden_size,), 1.5))
        for block in self.transformer.layers:
            block.mlp = torch.nn.Sequential(torch.nn.Linear(config.hidden_size, config.hidden_size), torch.nn.SiLU())

    def hidden_states(self, input_ids: torch.Tensor, document_lengths: Any = None, cache: Any = None) -> torch.Tensor:
        x = self.word_embeddings(input_ids.flatten()) * self.scale
        return self.transformer(x, Layout.of([input_ids.numel()]), None)[None]


def test_golden_logits_verify_any_decoder(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They compare what a model says, not what it is made of."""
    monkeypatch.setattr("modules.model.decoder.Decoder", OtherDecoder)
    other = OtherDecoder(make_config(tokenizer.vocab_size)).eval()
    folder = save_model(tmp_path / "model", other, tokenizer, {})
    expected = other(torch.tensor([tokenizer.encode_prompt(GOLDEN_PROMPT)]))[0, -1]
    torch.testing.assert_close(load_file(folder / "golden.safetensors")["logits"], expected)
    assert verify_model(folder) == 0.0


class Sinusoids(torch.nn.Module):
    """Positions by formula (Vaswani et al. 2017), as a table that no file holds."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        rates = 10000 ** -torch.linspace(0, 1, config.hidden_size)
        self.register_buffer("table", torch.outer(torch.arange(config.max_position_embeddings), rates).sin(), False)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return self.table[positions]


class SinusoidDecoder(Decoder):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.position_embeddings = Sinusoids(config)  # type: ignore[assignment]


def test_a_decoder_with_buffers_that_no_file_holds(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.model.decoder.Decoder", SinusoidDecoder)
    other = build_decoder(make_config(tokenizer.vocab_size), seed=3).eval()
    assert torch.equal(other.position_embeddings.table, Sinusoids(other.config).table)
    folder = save_model(tmp_path / "model", other, tokenizer, {})
    assert not any("position" in name for name in load_file(folder / "model.safetensors"))
    assert verify_model(folder) == 0.0
    ids = torch.tensor([tokenizer.encode_prompt(GOLDEN_PROMPT)])
    assert torch.equal(load_model(folder)(ids), other(ids))
    torch.testing.assert_close(load_file(folder / "golden.safetensors")["logits"], other(ids)[0, -1])
    torch.testing.assert_close(load_verified(folder)[0](ids), other(ids))


def test_the_golden_prompt_fits_a_model_of_few_positions(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = ModelConfig(tokenizer.vocab_size, 8, 1, 2, max_position_embeddings=3)
    folder = save_model(tmp_path / "model", build_decoder(config, 0), tokenizer, {})
    assert load_file(folder / "golden.safetensors")["input_ids"].shape == (1, 3)
    verify_model(folder)


def test_fresh_weights_follow_from_the_seed() -> None:
    config = ModelConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    first, again, other = (build_decoder(config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["word_embeddings.weight"], other["word_embeddings.weight"])


# --- nothing is overwritten, nothing is left half done ---


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_nothing_is_overwritten(
    tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "model")
    with pytest.raises(FileExistsError, match="never overwritten: choose another name"):
        save_model(tmp_path / "model", decoder, tokenizer, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_who_may_read_a_model_is_the_umasks_business(tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer) -> None:
    before = os.umask(0o027)
    try:
        folder = save_model(tmp_path / "model", decoder, tokenizer, RUN)
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == dict.fromkeys(
        (*FILES, "model.safetensors"), "0o640"
    )


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "step",
    [
        "checkpoint.weights.save_file",
        "checkpoint.verification.golden",
        "checkpoint.model_folder.to_yaml",
        "system.atomic.flush_to_disk",
    ],
)
def test_a_failed_save_leaves_nothing(
    tmp_path: Path,
    decoder: Decoder,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(f"modules.{step}", fail)
    with pytest.raises(type(error)):
        save_model(tmp_path / "model", decoder, tokenizer, RUN)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_appears_when_all_is_in_it(
    tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def watch(path: Path) -> None:
        synced.append(path.name)
        assert (tmp_path / "model").exists() == (path == tmp_path)

    monkeypatch.setattr("modules.system.atomic.flush_to_disk", watch)
    save_model(tmp_path / "model", decoder, tokenizer, RUN)
    assert set(FILES) <= set(synced[:-2])  # then the draft's own entries, and at last the rename
    assert synced[-1] == tmp_path.name


# --- strictness ---


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    for check in (load_model, verify_model):
        with pytest.raises(CheckpointError, match=rf"is no complete model folder: {name} missing"):
            check(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such model folder"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty is empty, and no model folder$"):
        load_model(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.pop("transformer.final_layernorm.bias"), "transformer.final_layernorm.bias is missing"),
        (lambda w: w.update(lm_head=torch.zeros(2)), "lm_head is not part of this architecture"),
        (lambda w: w.update({"position_embeddings.weight": torch.zeros(96, 47)}), r"is \(96, 47\), not \(96, 48\)"),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_weights_that_do_not_fit_are_named(folder: Path, change: Callable[[Any], Any], complaint: str) -> None:
    rewrite_weights(folder, change)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors doesn't fit model\.yaml: .*{complaint}"):
        load_model(folder)


def test_an_architecture_that_does_not_fit_is_named(folder: Path) -> None:
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(text.replace("num_hidden_layers: 2", "num_hidden_layers: 3"))
    with pytest.raises(CheckpointError, match=r"transformer\.layers\.2\.attention\.dense\.bias is missing"):
        load_model(folder)
    (folder / "model.yaml").write_text(text + "layers: 2\n")
    with pytest.raises(ConfigError, match=r"layers \(model.yaml\): no such key"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "golden.safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_named(folder: Path, name: str, keep: int) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: "):
        verify_model(folder)


# --- verify_model ---


@pytest.mark.parametrize(
    "place",
    [
        ("transformer.layers.1.mlp.dense_h_to_4h.weight", (3, 5)),
        ("word_embeddings.weight", (0, 0)),
        ("position_embeddings.weight", (95, 1)),  # no golden prompt comes this far
    ],
    ids=lambda place: place[0],
)
def test_one_changed_weight_is_noticed(folder: Path, place: tuple[str, tuple[int, int]]) -> None:
    name, index = place
    rewrite_weights(folder, lambda weights: weights[name][index].add_(1e-3))
    with pytest.raises(CheckpointError, match=r"model\.safetensors differs from what was saved"):
        verify_model(folder)


@pytest.mark.parametrize("check", [verify_model, load_verified])
def test_a_folder_that_is_not_there_is_no_missing_tokenizer(tmp_path: Path, check: Callable[[Path], Any]) -> None:
    with pytest.raises(CheckpointError, match="modell: no such model folder; a registered model is models:/NAME@ALIAS"):
        check(tmp_path / "modell")


@pytest.mark.parametrize("check", [verify_model, load_verified])
def test_a_changed_architecture_is_noticed(folder: Path, check: Callable[[Path], Any]) -> None:
    path = folder / "model.yaml"
    path.write_text(path.read_text().replace("layer_norm_eps: 1.0e-05", "layer_norm_eps: 2.0e-05"))
    with pytest.raises(CheckpointError, match=r"model\.yaml differs from what was saved"):
        check(folder)


def test_whoever_reads_a_model_learns_of_damage(folder: Path) -> None:
    load_verified(folder)
    rewrite_weights(folder, lambda weights: weights["word_embeddings.weight"][0, 0].add_(1e-3))
    with pytest.raises(CheckpointError, match=r"model\.safetensors differs from what was saved"):
        load_verified(folder)


@pytest.mark.parametrize("change", ["swap", "template"])
def test_a_changed_tokenizer_is_noticed(folder: Path, change: str) -> None:
    if change == "swap":  # two characters that the golden prompt lacks
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        vocab = content["model"]["vocab"]
        first, second = [token for token in vocab if len(token) == 1 and token not in GOLDEN_PROMPT][-2:]
        vocab[first], vocab[second] = vocab[second], vocab[first]
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        load_tokenizer(folder)
    else:
        load_tokenizer(folder).with_prompt_template("答：{src_txt}\n").save(folder)
    for check in (verify_model, load_verified):
        with pytest.raises(CheckpointError, match="the tokenizer or prompt template differs"):
            check(folder)


def test_another_result_of_the_same_weights_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a faulty kernel would give."""
    monkeypatch.setattr(LMHead, "forward", lambda self, x, weight: x @ weight.T + 0.01)
    with pytest.raises(CheckpointError, match=r"logits differ by 0\.01 from those it was saved with"):
        verify_model(folder)
    assert verify_model(folder, tolerance=0.1) == pytest.approx(0.01, rel=1e-2)
    monkeypatch.setattr(LMHead, "forward", lambda self, x, weight: x @ weight.T * torch.nan)
    with pytest.raises(CheckpointError, match="logits differ by nan"):
        verify_model(folder)


@pytest.mark.parametrize("change", ["no hashes", "another's logits"])
def test_golden_numbers_of_another_model_are_noticed(folder: Path, change: str) -> None:
    path = folder / "golden.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if change == "no hashes":
        metadata = None
    else:
        tensors["logits"] = tensors["logits"][:-1].contiguous()
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"differs from the one it was saved|golden\.safetensors is of another"):
        verify_model(folder)


def test_a_copy_is_as_good(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    assert verify_model(other) == 0.0
