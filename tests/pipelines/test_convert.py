"""The convert command: what it makes, what it refuses, what it needs of memory."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import mlflow
import pytest
import torch
import yaml

from modules.checkpoint import formats
from modules.checkpoint.loading import load_model, model_hash, open_model, verify_model
from modules.checkpoint.weights import CheckpointError, StoredModel, StoredTensor, shapes_of
from modules.config.loader import load_config
from modules.config.model import ModelConfig
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from pipelines.convert import convert
from pipelines.finetune import finetune
from pipelines.register import register
from tests.helpers.models import ROOT, make_config, make_decoder, save_model

DATA = ROOT / "tests" / "files" / "modelscope"
QUIET = "tracking.log_system_metrics=false"

ROWS = {"src_txt": ["天生我材必有用"] * 20}


def two_steps_from(folder: Path) -> list[str]:
    arguments = [f"train.init_from={folder}", "train.max_steps=2", "train.max_epochs=null", "train.batch_size=4"]
    arguments += ["train.schedule=constant", "train.warmup_steps=1", "train.learning_rate=1e-3", "data.path=null"]
    return [*arguments, "data.sequence_length=32", "generation.max_new_tokens=4", "trainer.accelerator=cpu", QUIET]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    command = [sys.executable, "-m", "pipelines.convert", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_makes_a_sound_folder_and_says_what_it_did(store: Path) -> None:
    done = run(f"source={DATA / 'megatron_tp2'}", "target=mine", cwd=store)
    assert done.returncode == 0, done.stderr
    for text in ("converted to moyun", "(megatron)", "112,384 in float32", "model.safetensors", "model=mine"):
        assert text in done.stdout
    assert verify_model(store / "mine") == 0.0
    source = yaml.safe_load((store / "mine" / "run.yaml").read_text(encoding="utf-8"))["source"]
    assert source == {
        "path": str(DATA / "megatron_tp2"),
        "format": "megatron",
        "weights_sha256": model_hash(DATA / "megatron_tp2"),
    }
    again = run(f"source={DATA / 'base'}", "target=mine", cwd=store)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "convert: target=mine exists already; nothing is overwritten: choose another name\n"


@pytest.mark.parametrize(("format_name", "kind"), [("modelscope", "bert"), ("megatron", "jieba_bpe")])
def test_the_next_step_is_one_that_works(
    format_name: str, kind: str, store: Path, decoder: Decoder, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(store / "model", decoder, tokenizer, {})
    convert(load_config("convert", ["source=model", "target=out", f"format={format_name}"]))
    shown = " ".join(capsys.readouterr().out.split())
    assert 'next python -m pipelines.generate model=out "白日依山尽，" (ModelScope\'s own classes read' in shown
    assert f"tokenizer character, which comes back to moyun; ModelScope's own code only knows {kind}" in shown
    assert "pipeline('text-generation'" not in shown
    assert load_tokenizer("out").fingerprint == tokenizer.fingerprint


def test_a_dtype_is_kept_or_made(store: Path) -> None:
    convert(load_config("convert", [f"source={DATA / 'base'}", "target=half", "dtype=float16"]))
    convert(load_config("convert", ["source=half", "target=again", "format=megatron", "tensor_parallel=2"]))
    assert {tensor.dtype for tensor in open_model("again").weights.values()} == {torch.float16}
    assert json.loads(Path("again/config.json").read_text())["fp16"] is True
    assert torch.equal(
        load_model("again").word_embeddings.weight, load_model(DATA / "base").word_embeddings.weight.half()
    )


def test_a_refused_target_leaves_nothing(store: Path) -> None:
    before = sorted(store.iterdir())
    for arguments in (["format=modelscope"], ["format=megatron", "tensor_parallel=3"]):
        with pytest.raises(ValueError, match="format=megatron|tensor_parallel \\(3\\) must divide"):
            convert(load_config("convert", [f"source={DATA / 'megatron_tp1'}", "target=new", *arguments]))
    with pytest.raises(ValueError, match="nowhere: no such model folder"):
        convert(load_config("convert", ["source=nowhere", "target=new"]))
    assert sorted(store.iterdir()) == before


@pytest.mark.parametrize("lora", [[], ["lora.rank=2"]], ids=["all weights", "an adapter"])
def test_a_megatron_folder_is_fine_tuned_as_it_is(lora: list[str], store: Path) -> None:
    folder = DATA / "megatron_tp2"
    result = finetune(load_config("finetune", [*two_steps_from(folder), *lora]), ROWS)
    assert result.model is not None
    verify_model(result.model)
    tuned, before = open_model(result.model), open_model(folder)
    assert tuned.config == before.config
    assert load_tokenizer(result.model).fingerprint == load_tokenizer(folder).fingerprint
    name = "transformer.layers.1.attention.query_key_value.weight"
    changed = tuned.weights[name].read() - before.weights[name].read()
    assert 1e-6 < float(changed.abs().max()) < 1e-2  # two steps from there, not from elsewhere
    parent = yaml.safe_load((result.model / "run.yaml").read_text(encoding="utf-8"))["parent"]
    assert parent == {"init_from": str(folder), "weights_sha256": model_hash(folder)}


def test_a_damaged_folder_is_not_given_new_hashes(
    store: Path, tokenizer: Tokenizer, rows: datasets.Dataset, decoder: Decoder
) -> None:
    folder = save_model(store / "model", decoder, tokenizer, {})
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="differs from what was saved; copy the folder again"):
        convert(load_config("convert", ["source=model", "target=other"]))
    with pytest.raises(CheckpointError, match="differs from what was saved; copy the folder again"):
        finetune(load_config("finetune", ["train.init_from=model", "data.sequence_length=64"]), rows)
    assert not (store / "other").exists()


def test_training_is_in_float32_whatever_is_stored(store: Path) -> None:
    convert(load_config("convert", [f"source={DATA / 'base'}", "target=half", "format=modelscope", "dtype=float16"]))
    result = finetune(load_config("finetune", two_steps_from(Path("half"))), ROWS)
    assert result.model is not None
    assert {tensor.dtype for tensor in open_model(result.model).weights.values()} == {torch.float32}


def test_only_a_moyun_folder_is_registered(store: Path) -> None:
    with pytest.raises(ValueError, match="is a modelscope checkpoint.*python -m pipelines.convert source="):
        register(load_config("register", [f"model={DATA / 'base'}", "data.path=rows.txt", QUIET]))
    assert mlflow.search_registered_models() == []


# --- memory ---

MEASURE = """
import shlex, sys, threading
from modules.config.loader import load_config
from pipelines.convert import convert
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
def watch(done, found):
    while not done.wait(0.002):
        found.append(anonymous())
def peak(arguments):
    done, found = threading.Event(), []
    watcher = threading.Thread(target=watch, args=(done, found))
    watcher.start()
    convert(load_config("convert", shlex.split(arguments)))
    done.set()
    watcher.join()
    print("peak", max(found) - before)
convert(load_config("convert", shlex.split(sys.argv[1])))  # a small one, so that libraries are loaded and counted out
before = anonymous()
for arguments in sys.argv[2:]:
    peak(arguments)
"""
LIMITS = {  # the most anonymous memory beside the weights, as a share of their size
    "source=megatron target=moyun": 1.25,  # one file, which is put together in memory up to 5 GB
    "source=moyun target=recut format=megatron tensor_parallel=4": 0.6,  # one shard of four, and what malloc kept
    "source=moyun target=whole format=megatron": 0.6,  # query_key_value, whose rows change places, and the same
    "source=moyun target=gguf format=gguf dtype=q8_0": 0.5,  # one matrix, in float32 and in blocks
}


def fabricate(folder: Path, layers: int, width: int, vocabulary: int, dtype: torch.dtype) -> int:
    """Four shards of one number over and over; returns their size in bytes."""
    config = ModelConfig(vocabulary, width, layers, width // 64, max_position_embeddings=256, hidden_act="gelu_new")
    tensors = {
        name: StoredTensor(shape, dtype, lambda shape=shape: torch.full(shape, 0.01, dtype=dtype))  # type: ignore[misc]
        for name, shape in shapes_of(config).items()
    }
    folder.mkdir()
    formats.write(folder, "megatron", StoredModel(config, tensors), train_tokenizer(["春风"] * 2), tensor_parallel=4)
    return sum(path.stat().st_size for path in (folder / "model").iterdir())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux tells it")
@pytest.mark.parametrize(
    ("layers", "width", "vocabulary", "dtype"),
    [
        pytest.param(4, 1024, 24_000, torch.float32, id="300 MB"),
        pytest.param(24, 2048, 51_200, torch.float16, id="1.3b", marks=pytest.mark.slow),
    ],
)
def test_memory_stays_far_below_twice_the_model(
    layers: int, width: int, vocabulary: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """By the peak of what isn't mapped from a file, in a process of its own."""
    size = fabricate(tmp_path / "megatron", layers, width, vocabulary, dtype)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, f"source={shlex.quote(str(DATA / 'megatron_tp2'))} target=small", *LIMITS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peaks = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak")]
    for (arguments, limit), peak in zip(LIMITS.items(), peaks, strict=True):
        print(f"{arguments}: {size / 1e6:,.0f} MB of weights, {peak / 1e6:,.0f} MB of memory ({peak / size:.2f})")
        assert peak < limit * size


def test_a_model_gets_tokens_for_words_that_are_new_to_it_and_can_be_trained(
    store: Path, decoder: Decoder, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(store / "model", decoder, tokenizer, {})
    for name, text in (("one", "人工智能的数据。"), ("two", "数据库的数据。")):
        datasets.Dataset.from_dict({"src_txt": [f"{text}{row}" for row in range(40)]}).to_json(store / f"{name}.jsonl")
    wanted = ["vocabulary.path=[one.jsonl,two.jsonl]", "vocabulary.new_tokens=30", "vocabulary.min_frequency=20"]
    convert(load_config("convert", ["source=model", "target=wider", *wanted]))
    told = " ".join(capsys.readouterr().out.split())
    wider, model = load_tokenizer("wider"), open_model("wider")
    added = wider.vocab_size - tokenizer.vocab_size
    assert f"{added} tokens are new, {wider.vocab_size:,} in all; nothing else occurs 20 times" in told
    assert "train it on those rows" in told
    assert "next python -m pipelines.finetune train.init_from=wider" in told
    assert verify_model("wider") == 0.0
    assert model.config.vocab_size == wider.vocab_size > tokenizer.vocab_size
    assert len(wider.encode("人工智能的数据")) < len("人工智能的数据")
    made = yaml.safe_load((store / "wider" / "run.yaml").read_text(encoding="utf-8"))
    assert made["config"]["vocabulary"]["path"] == "[one.jsonl,two.jsonl]"
    trained = finetune(load_config("finetune", two_steps_from(Path("wider"))), rows=ROWS)
    assert load_tokenizer(trained.model).fingerprint == wider.fingerprint


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["vocabulary.new_tokens=9"], "vocabulary.new_tokens has no effect without vocabulary.path"),
        (["vocabulary.path=rows.jsonl", "vocabulary.new_tokens=0"], "new_tokens"),
        (["vocabulary.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["vocabulary.path=[one.jsonl,]"], "names nothing, or the same rows twice"),
        (["vocabulary.path=[one.jsonl,one.jsonl]"], "names nothing, or the same rows twice"),
        (["vocabulary.path=named.csv"], r"vocabulary\.path: .*pipelines\.prepare source=FILE columns\.NAME=src_txt"),
        (["vocabulary.path=one.jsonl"], r"nothing new that occurs 30 times; lower min_frequency"),
    ],
)
def test_a_vocabulary_that_cannot_be_learnt_is_refused_before_anything_is_written(
    given: list[str], said: str, store: Path, decoder: Decoder, tokenizer: Tokenizer
) -> None:
    save_model(store / "model", decoder, tokenizer, {})
    (store / "one.jsonl").write_text('{"src_txt": "人工智能"}\n', encoding="utf-8")  # a book may be one row
    (store / "named.csv").write_text("text\n人工智能\n", encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        convert(load_config("convert", ["source=model", "target=wider", *given]))
    assert not (store / "wider").exists()


def test_a_vocabulary_that_came_with_a_published_model_stays_as_it_is(store: Path) -> None:
    published = load_tokenizer(ROOT / "tests" / "files" / "modelscope" / "base")
    save_model(store / "model", make_decoder(make_config(published.vocab_size)), published, {})
    with pytest.raises(
        ValueError, match=r"vocabulary\.path: a bert tokenizer can't be extended.*leave vocabulary.path"
    ):
        convert(load_config("convert", ["source=model", "target=wider", "vocabulary.path=nowhere.jsonl"]))
