"""Formats against one another: what goes through any of them comes back bit by bit, and pickles run nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.checkpoint import formats
from modules.checkpoint.loading import load_for_inference, load_model, model_hash, open_model
from modules.checkpoint.model_folder import write_model
from modules.checkpoint.pickles import read_pickle, write_pickle
from modules.checkpoint.weights import CheckpointError, StoredModel, in_dtype, stored
from modules.config.loader import load_config
from modules.config.model import ModelConfig
from modules.model.decoder import Decoder
from modules.system.atomic import new_folder
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from modules.tracking.registry import resolve_model
from pipelines import pipeline
from pipelines.convert import convert
from pipelines.evaluate import evaluate
from pipelines.finetune import finetune
from tests.helpers.models import ROOT, make_config, make_decoder

DATA = ROOT / "tests" / "files" / "modelscope"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TARGETS: list[tuple[str, dict[str, int]]] = [
    ("moyun", {}),
    ("huggingface", {}),
    ("modelscope", {}),
    *(("megatron", {"tensor_parallel": parts}) for parts in (1, 2, 4, 8)),
]
SMALL = make_config(304, hidden_size=32, num_attention_heads=8, hidden_dropout_prob=0.05, layer_norm_eps=3e-7)


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    return train_tokenizer(["白日依山尽，黄河入海流。"] * 2).with_prompt_template("问：{src_txt}\n答：")


def model_of(config: ModelConfig, dtype: torch.dtype = torch.float32) -> StoredModel:
    tensors = make_decoder(config, seed=3).state_dict()
    tensors["transformer.final_layernorm.bias"][:3] = torch.tensor([-0.0, 1e-40, 6e-8])  # what a careless copy loses
    return StoredModel(config, stored({name: tensor.to(dtype) for name, tensor in tensors.items()}))


def put(folder: Path, name: str, model: StoredModel, tokenizer: Tokenizer, **options: Any) -> Path:
    if name == "moyun":
        tensors = ((tensor_name, tensor.read()) for tensor_name, tensor in model.weights.items())
        return write_model(folder, model.config, tensors, tokenizer, {})
    with new_folder(folder, "a model folder") as draft:
        formats.write(draft, name, model, tokenizer, **options)
    return folder


def bits(model: StoredModel) -> dict[str, tuple[torch.dtype, bytes]]:
    found = {name: tensor.read() for name, tensor in model.weights.items()}
    return {name: (t.dtype, t.contiguous().view(torch.uint8).numpy().tobytes()) for name, t in found.items()}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"model.yaml": {}, "config.json": {"model_type": "gpt2"}}, "moyun"),
        ({"config.json": {"hidden_size": 8}, "configuration.json": {"model": {"type": "gpt3"}}}, "modelscope"),
        ({"config.json": {"model_type": "gpt3"}}, "modelscope"),  # as GPT3Config itself saves it
        ({"config.json": {"model_type": "gpt3"}, "configuration.json": {"megatron": {}}}, "megatron"),
        ({"config.json": {"model_type": "gpt2"}, "configuration.json": {"framework": "pytorch"}}, "huggingface"),
        ({"config.json": {"model_type": "qwen2"}}, "huggingface"),
        ({"notes.txt": {}}, "moyun"),
    ],
)
def test_a_format_is_told_by_its_configuration(files: dict[str, Any], expected: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert formats.format_of(tmp_path) == expected


# --- there and back ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", TARGETS, ids=str)
def test_any_format_to_any_other_is_bit_exact(
    first: tuple[str, dict[str, int]], dtype: torch.dtype, tmp_path: Path, letters: Tokenizer
) -> None:
    model = model_of(SMALL, dtype)
    expected = bits(model)
    start = put(tmp_path / "start", first[0], model, letters, **first[1])
    assert formats.format_of(start) == first[0]
    for number, (name, options) in enumerate(TARGETS):
        folder = put(tmp_path / str(number), name, open_model(start), load_tokenizer(start), **options)
        found = open_model(folder)
        assert found.config == SMALL
        assert bits(found) == expected
        assert load_tokenizer(folder).fingerprint == letters.fingerprint


@pytest.mark.parametrize("sample", ["base", "megatron_tp2"])
@pytest.mark.parametrize(("name", "options"), TARGETS[2:4], ids=str)
def test_modelscope_s_own_tokenizers_come_back(sample: str, name: str, options: dict[str, int], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(DATA / sample)
    folder = put(tmp_path / "model", name, model_of(make_config(128)), tokenizer, **options)
    assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint
    (folder / "tokenizer_config.json").unlink()  # ModelScope doesn't know moyun's
    if (sample, name) == ("base", "modelscope"):
        assert (folder / "vocab.txt").read_bytes() == (DATA / "base" / "vocab.txt").read_bytes()
        assert load_tokenizer(folder).encode_prompt("天生我材") == tokenizer.encode_prompt("天生我材")
    if (sample, name) == ("megatron_tp2", "megatron"):
        assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint


def test_a_tanh_gelu_comes_back_where_it_can_be_said(tmp_path: Path, letters: Tokenizer) -> None:
    model = model_of(make_config(304, hidden_act="gelu_new"))
    assert open_model(put(tmp_path / "megatron", "megatron", model, letters)).config.hidden_act == "gelu_new"
    with pytest.raises(CheckpointError, match="hidden_act=gelu_new can't be written as format=modelscope.*=megatron"):
        put(tmp_path / "base", "modelscope", model, letters)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("changes", "parts", "complaint"),
    [
        ({"vocab_size": 302}, 4, r"tensor_parallel \(4\) must divide vocab_size \(302\); .* would do: 1, 2"),
        ({"num_attention_heads": 6}, 4, r"tensor_parallel \(4\) must divide num_attention_heads \(6\); .*: 1, 2"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    changes: dict[str, int], parts: int, complaint: str, tmp_path: Path, letters: Tokenizer
) -> None:
    model = model_of(make_config(**{"vocab_size": 304} | changes))
    with pytest.raises(CheckpointError, match=complaint):
        put(tmp_path / "model", "megatron", model, letters, tensor_parallel=parts)
    assert list(tmp_path.iterdir()) == []


def test_numbers_too_large_for_a_format_are_refused() -> None:
    model = StoredModel(SMALL, stored({"weight": torch.tensor([1.0, 7e4])}))
    assert in_dtype(model, torch.bfloat16).weights["weight"].read().dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="weight holds numbers too large for torch.float16; choose"):
        in_dtype(model, torch.float16).weights["weight"].read()


def test_half_precision_is_computed_in_float32_on_a_cpu(tmp_path: Path, letters: Tokenizer) -> None:
    def dtypes(decoder: Decoder) -> set[torch.dtype]:
        return {tensor.dtype for tensor in decoder.state_dict().values()}

    half, brain = (put(tmp_path / str(t), "modelscope", model_of(SMALL, t), letters) for t in (DTYPES[2], DTYPES[1]))
    assert dtypes(load_model(half)) == {torch.float16}
    assert dtypes(load_for_inference(half)) == {torch.float32}
    for decoder in (load_for_inference(half, "bfloat16"), load_for_inference(brain)):
        assert decoder.head.linear.weight.dtype == torch.bfloat16  # in products alone
        assert dtypes(decoder) == {torch.float32}
    assert dtypes(pipeline(model=str(brain), dtype="float32").decoder) == {torch.float32}
    with pytest.raises(ValueError, match="dtype=half must be auto, float32, bfloat16 or int8"):
        load_for_inference(half, "half")


def test_the_hash_follows_the_weights_alone(tmp_path: Path) -> None:
    for sample, file in (("base", "pytorch_model.bin"), ("megatron_tp2", "model/mp_rank_01_model_states.pt")):
        folder = shutil.copytree(DATA / sample, tmp_path / sample)
        (folder / "notes.txt").write_text("春")
        assert model_hash(folder) == model_hash(DATA / sample)
        (folder / file).write_bytes((folder / file).read_bytes() + b"\0")
        assert model_hash(folder) != model_hash(DATA / sample)


def test_a_foreign_folder_is_a_model_by_its_path() -> None:
    assert resolve_model(str(DATA / "megatron_tp2")) == DATA / "megatron_tp2"


# --- pickles ---


class Evil:
    """Whose loading leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture(params=["base", "base, as before PyTorch 1.6", "megatron_tp2"])
def malicious(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(DATA / request.param.partition(",")[0], tmp_path / "malicious"))
    (path,) = formats.files_of_format(folder, formats.format_of(folder))[-1:]
    content = torch.load(path, weights_only=True)
    content["language_model.note"] = Evil(tmp_path / "canary")
    torch.save(content, path, _use_new_zipfile_serialization="," not in request.param)
    return folder


def finetune_from(folder: str) -> None:
    arguments = [f"train.init_from={folder}", "train.max_steps=1", "train.learning_rate=1e-4", "train.batch_size=1"]
    arguments += ["data.sequence_length=16", "tracking.log_system_metrics=false", "data.path=null"]
    finetune(load_config("finetune", arguments), {"src_txt": ["天生我材必有用"] * 10})


def evaluate_with(folder: str) -> None:
    rows = Path(folder).parent / "rows.txt"
    rows.write_text("天生我材必有用\n将进酒\n")
    arguments = [f"model={folder}", f"data.path={rows}", f"data.test_path={rows}", "tracking.log_system_metrics=false"]
    evaluate(load_config("evaluate", arguments))


ENTRIES: dict[str, Callable[[str], Any]] = {
    "open_model": open_model,
    "load_model": load_model,
    "convert": lambda folder: convert(load_config("convert", [f"source={folder}", f"target={folder}-converted"])),
    "finetune": finetune_from,
    "evaluate": evaluate_with,
    "pipeline": lambda folder: pipeline(model=folder),
}


@pytest.mark.parametrize("forced", [False, True], ids=["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_malicious_pickle_is_refused_everywhere(
    entry: str, forced: bool, malicious: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match=r"was not loaded: beside tensors it holds posix.mkdir.*safetensors"):
        ENTRIES[entry](str(malicious))
    assert not (malicious.parent / "canary").exists()


def test_the_canary_would_be_seen(malicious: Path) -> None:
    torch.load(formats.files_of_format(malicious, formats.format_of(malicious))[-1], weights_only=False)
    assert (malicious.parent / "canary").is_dir()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([torch.zeros(2)], "holds no state dict but a list"),
        ({"a": {"b": torch.zeros(2)}}, "a is no tensor"),
        ({"a": torch.zeros(2).to_sparse()}, "a is no tensor"),
    ],
)
def test_other_content_is_refused(content: Any, complaint: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=rf"file\.pt.*{complaint}"):
        read_pickle(tmp_path / "file.pt")


def test_a_nesting_is_taken_off_with_the_bookkeeping_beside_it(tmp_path: Path) -> None:
    torch.save({"iteration": 7, "module": {"model.a": torch.ones(2), "model.b": torch.ones(1)}}, tmp_path / "a.pt")
    assert list(read_pickle(tmp_path / "a.pt", ("x.", "model."))) == ["a", "b"]
    torch.save({"model.a": torch.ones(2), "b": torch.ones(1)}, tmp_path / "b.pt")
    assert list(read_pickle(tmp_path / "b.pt", ("model.",))) == ["model.a", "b"]


def test_a_tensor_takes_only_its_own_place_in_the_file(tmp_path: Path) -> None:
    """torch.save by itself would write all that a view looks at."""
    whole = torch.arange(100_000, dtype=torch.float32).view(1000, 100)
    write_pickle(tmp_path / "file.pt", {"module": {"rows": whole[5:7], "columns": whole[:3, 5:7], "one": whole[9, 9]}})
    assert (tmp_path / "file.pt").stat().st_size < 5_000
    found = read_pickle(tmp_path / "file.pt")
    assert torch.equal(found["rows"], whole[5:7])
    assert torch.equal(found["columns"], whole[:3, 5:7])
    assert torch.equal(found["one"], whole[9, 9])


# --- architectures that a format can't hold ---

EXPORTED = ["huggingface", "modelscope", "megatron", "gguf"]


@dataclasses.dataclass
class WiderConfig(ModelConfig):
    """A decoder of tomorrow: one more option, and one more with a list for a default."""

    position_embedding: str = "learned"
    windows: list[int] = dataclasses.field(default_factory=list)


def wider(**options: Any) -> StoredModel:
    config = WiderConfig(**dataclasses.asdict(SMALL), **options)
    return StoredModel(config, model_of(SMALL).weights)


@pytest.mark.parametrize("name", EXPORTED)
def test_an_option_that_a_format_does_not_know_is_refused(name: str, tmp_path: Path, letters: Tokenizer) -> None:
    with pytest.raises(
        CheckpointError, match=f"position_embedding=rope can't be written as format={name}.*moyun's own"
    ):
        formats.write(tmp_path, name, wider(position_embedding="rope"), letters)
    with pytest.raises(CheckpointError, match=r"position_embedding=rope, windows=\[4\] can't"):
        formats.write(tmp_path, name, wider(position_embedding="rope", windows=[4]), letters)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", EXPORTED)
def test_with_its_default_the_files_are_the_same(name: str, tmp_path: Path, letters: Tokenizer) -> None:
    for folder, model in ((tmp_path / "plain", model_of(SMALL)), (tmp_path / "wider", wider())):
        folder.mkdir()
        formats.write(folder, name, model, letters)
    files = [path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*.*") if path.is_file()]
    assert len(files) > 3
    for file in files:
        if (name, file.name) != ("gguf", "model.yaml"):  # which tells all options, the new one too
            assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "wider" / file).read_bytes()


@pytest.mark.parametrize("name", EXPORTED)
def test_weights_that_a_format_does_not_know_are_named_together(name: str, tmp_path: Path, letters: Tokenizer) -> None:
    weights = dict(model_of(SMALL).weights)
    del weights["position_embeddings.weight"]
    extra = stored({f"transformer.layers.{n}.mlp.gate.{part}": torch.ones(2) for n in (0, 1) for part in ("a", "b")})
    with pytest.raises(CheckpointError, match=r"layers\.\*\.mlp\.gate\.a, .*\.mlp\.gate\.b, no position_embeddings"):
        formats.write(tmp_path, name, StoredModel(SMALL, weights | extra), letters)
    assert list(tmp_path.iterdir()) == []
