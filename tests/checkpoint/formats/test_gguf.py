"""GGUF exports: what llama.cpp's own server makes of them, beside what torch makes of the model."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from benchmarks.peer_llama_cpp import LlamaServer
from modules.checkpoint import formats
from modules.checkpoint.weights import CheckpointError, StoredModel, stored
from modules.config.generation import GenerationConfig
from modules.config.loader import ConfigError, load_config
from modules.inference.text_generator import TextGenerator
from modules.model.decoder import Decoder
from modules.model.decoding.penalties import penalize
from modules.model.sampling import generate as generate_ids
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from pipelines import pipeline
from pipelines.convert import convert
from pipelines.generate import generate
from tests.helpers.models import ROOT, make_config, make_decoder, save_model

DATA = ROOT / "tests" / "files" / "modelscope"
HARD = [
    "Hello, world! <0x41> 𠮷野家　全角 ▁ a  b\n\nc\t嗨😀 <|endoftext|>",
    "  《红楼梦》　曹雪芹 著\r\n“满纸荒唐言，一把辛酸泪！”——都云作者痴…谁解其中味？ ",
    "第1章：GPT-3 模型（2024年）训练了100步。1949年二〇二四ｆｕｌｌ",
    "がんばって カタカナ 한국어 Café déjà vu; it's naïve",
]
KINDS = ["character", "bpe", "byte_level_bpe", "bert", "jieba_bpe"]
EXACT = ["character", "bpe", "byte_level_bpe"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, poems: dict[str, list[str]]) -> dict[str, Path]:
    """A tokenizer of each kind, saved."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer(poems["train"], vocab_size=2000).save(folder / "character")
    train_tokenizer(poems["train"], "bpe", vocab_size=4000).save(folder / "bpe")
    byte_level(poems["train"]).save(folder / "byte_level_bpe")
    (folder / "bert").mkdir()
    (folder / "bert" / "vocab.txt").write_text("\n".join(bert_vocabulary(poems["train"])), encoding="utf-8")
    load_tokenizer(DATA / "megatron_tp1").save(folder / "jieba_bpe")
    return {kind: folder / kind for kind in KINDS}


def byte_level(texts: list[str]) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    backend.train_from_iterator([*texts, *HARD], trainer)
    return Tokenizer(backend, "byte_level_bpe", "<|endoftext|>", ["<|endoftext|>"])


def bert_vocabulary(texts: list[str]) -> list[str]:
    """The order of the published one: special tokens, Chinese characters, signs, Latin words and their pieces."""
    characters = sorted(set("".join(texts)))
    latin = [*"abcdefghijklmnopqrstuvwxyz0123456789", "hello", "world", "the", "2024", "gpt"]
    tokens = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *".,!?;:%'-()[]<>", *latin]
    return list(dict.fromkeys([*tokens, *(f"##{token}" for token in [*latin[:36], *characters, "ing", "lo"])]))


def export(folder: Path, decoder: Decoder, tokenizer: Tokenizer, dtype: str = "keep") -> Path:
    folder.mkdir()
    formats.write(folder, "gguf", StoredModel(decoder.config, stored(decoder.state_dict())), tokenizer, dtype=dtype)
    return folder / "model.gguf"


def exported(folder: Path, decoder: Decoder, tokenizer: Tokenizer, dtype: str = "keep", rows: int = 1) -> LlamaServer:
    return LlamaServer(export(folder, decoder, tokenizer, dtype), rows=rows)


def model_of(tokenizer: Tokenizer, **changes: Any) -> Decoder:
    return make_decoder(make_config(tokenizer.vocab_size, **({"hidden_size": 64} | changes)))


def by_row(tokens: Iterable[tuple[int, int | None]]) -> list[list[int]]:
    rows: dict[int, list[int]] = {}
    for row, token in tokens:
        rows.setdefault(row, []).extend([] if token is None else [token])
    return [rows[row] for row in sorted(rows)]


# --- numbers ---


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_torchs_but_for_near_ties(
    kind: str, hidden_act: str, folders: dict[str, Path], poems: dict[str, list[str]], tmp_path: Path
) -> None:
    """Random weights know nothing and often hesitate: where the two go apart, torch's own choice was by a hair."""
    tokenizer = load_tokenizer(folders[kind])
    decoder = model_of(tokenizer, hidden_act=hidden_act)
    server = exported(tmp_path / "gguf", decoder, tokenizer, rows=8)
    prompts = [tokenizer.encode_prompt(text[:12]) for text in poems["test"][:8]]
    plain = GenerationConfig(max_new_tokens=64, temperature=0)
    end = tokenizer.end_of_text_id
    assert server.tokens(prompts, 64) == by_row(generate_ids(decoder, prompts, plain, end))
    # A penalty, since greedy text of random weights is else one token over and over.
    varied = GenerationConfig(max_new_tokens=64, temperature=0, repetition_penalty=1.5)
    here = by_row(generate_ids(decoder, prompts, varied, end))
    there = server.tokens(prompts, 64, repeat_penalty=1.5, repeat_last_n=96)
    for prompt, found, expected in zip(prompts, there, here, strict=True):
        apart = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
        if apart is not None:
            ids = [*prompt, *expected[:apart]]
            logits = decoder(torch.tensor([ids]))[:, -1].detach()
            scores = penalize(logits, torch.tensor([ids]), 1.5, end)[0]
            assert 0 <= float(scores[expected[apart]] - scores[found[apart]]) < 4e-3
    assert sum(map(len, here)) > 300


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 3e-3), ("float16", 5e-3), ("bfloat16", 3e-2), ("q8_0", 1e-1)]
)
def test_logits_are_near(
    dtype: str, tolerance: float, tokenizer: Tokenizer, poems: dict[str, list[str]], tmp_path: Path
) -> None:
    """As log-probabilities, in units of logits whose standard deviation is 0.85."""
    decoder = model_of(tokenizer, hidden_act="gelu_new")
    prompts = [tokenizer.encode_prompt(text)[:24] for text in poems["test"][:8]]
    expected = torch.stack([decoder(torch.tensor([prompt]))[0, -1].log_softmax(-1) for prompt in prompts])
    server = exported(tmp_path / "gguf", decoder, tokenizer, dtype)
    sizes = (tokenizer.vocab_size, tokenizer.end_of_text_id)
    found = torch.stack([server.log_probabilities(prompt, *sizes) for prompt in prompts])
    difference = float((found - expected).detach().abs().max())
    assert tolerance / 20 < difference < tolerance  # below it, another format than asked for


def test_sizes_are_those_of_the_number_formats(tokenizer: Tokenizer, tmp_path: Path) -> None:
    decoder = model_of(tokenizer)
    sizes = {}
    for dtype in ("float32", "float16", "q8_0"):
        sizes[dtype] = export(tmp_path / dtype, decoder, tokenizer, dtype).stat().st_size
    matrices = sum(p.numel() for name, p in decoder.named_parameters() if p.dim() > 1 and "position" not in name)
    assert sizes["float32"] - sizes["float16"] == 2 * matrices
    assert sizes["float32"] - sizes["q8_0"] == pytest.approx(matrices * (4 - 34 / 32), rel=1e-3)  # and padding


# --- vocabularies ---


def ids_there(server: LlamaServer, text: str) -> list[int]:
    """As llama-server makes them of a prompt, but with special tokens as text."""
    options = {"content": text, "add_special": True, "parse_special": False}
    return list(server.ask("/tokenize", options)["tokens"])


def text_there(server: LlamaServer, ids: list[int]) -> str:
    return str(server.ask("/detokenize", {"tokens": ids})["content"])


@pytest.mark.parametrize("kind", EXACT)
def test_llama_cpp_makes_the_same_ids_and_texts(
    kind: str, folders: dict[str, Path], poems: dict[str, list[str]], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(folders[kind])
    server = exported(tmp_path / "gguf", model_of(tokenizer), tokenizer)
    for text in [*poems["train"], *poems["test"], *HARD]:
        ids = tokenizer.encode_prompt(text)
        assert ids_there(server, text) == ids
        assert text_there(server, ids[len(tokenizer.start_ids) :]) == text


def test_berts_ids_are_the_same_but_for_unknown_characters(
    folders: dict[str, Path], poems: dict[str, list[str]], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(folders["bert"])
    server = exported(tmp_path / "gguf", model_of(tokenizer), tokenizer)
    texts = [*poems["train"], "Hello，WORLD\n2024年 GPT-3，《白日》", "hello hello 白日loing\t依山"]
    for text in texts:
        assert ids_there(server, text) == tokenizer.encode_prompt(text)
        if text.isascii() is False and not any(c.isascii() for c in text):
            assert text_there(server, tokenizer.encode(text)) == text
    assert text_there(server, tokenizer.encode("白日hello world。")) == "白日 hello world。"


def test_what_jieba_cuts_is_at_least_written_right(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folders["jieba_bpe"])
    decoder = model_of(tokenizer)
    (tmp_path / "gguf").mkdir()
    model = StoredModel(decoder.config, stored(decoder.state_dict()))
    notes = formats.write(tmp_path / "gguf", "gguf", model, tokenizer)
    assert "can't cut words with jieba: hand it token ids" in notes[0]
    ids = tokenizer.encode("床前明月光，疑是地上霜。\n")
    assert text_there(LlamaServer(tmp_path / "gguf" / "model.gguf"), ids) == "床前明月光，疑是地上霜。\n"


@pytest.mark.parametrize("kind", KINDS)
def test_metadata(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folders[kind])
    # Rows of the embedding without a token, as published checkpoints have them.
    decoder = model_of(tokenizer, max_position_embeddings=80)
    decoder = make_decoder(make_config(tokenizer.vocab_size + 5, hidden_size=64, max_position_embeddings=80))
    server = exported(tmp_path / "gguf", decoder, tokenizer)
    facts = server.ask("/v1/models")["data"][0]["meta"]
    assert (facts["n_ctx_train"], facts["n_vocab"]) == (80, tokenizer.vocab_size + 5)
    assert ids_there(server, "")[: len(tokenizer.start_ids)] == tokenizer.start_ids
    for token in (tokenizer.end_of_text_id, *tokenizer.start_ids, tokenizer.vocab_size + 1):  # no text, if written
        (row,) = server.complete([[5]], 2, logit_bias=[[token, 1e6]])
        assert row["content"] == ""
        assert (row["stop_type"] == "eos") == (token == tokenizer.end_of_text_id)
    assert load_tokenizer(tmp_path / "gguf").fingerprint == tokenizer.fingerprint


def test_llama_server_takes_text_applies_the_template_and_stops(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer = tokenizer.with_prompt_template("问：{src_txt}\n答：")
    decoder = model_of(tokenizer)
    expected = TextGenerator(decoder, tokenizer)("白日依山尽，", temperature=0, max_new_tokens=8)["text"]
    server = exported(tmp_path / "gguf", decoder, tokenizer)
    options = {"max_tokens": 8, "temperature": 0, "cache_prompt": False}
    found = server.ask("/v1/completions", {"prompt": "问：白日依山尽，\n答：", **options})
    assert found["choices"][0]["text"].replace("�", "") == expected.replace("�", "")
    said = [{"role": "user", "content": "白日依山尽，"}]
    usage = server.ask("/v1/chat/completions", {"messages": said, **options})["usage"]
    assert usage["prompt_tokens"] == len(tokenizer.encode_prompt("白日依山尽，"))
    said += [{"role": "assistant", "content": "黄河"}, {"role": "user", "content": "春"}]
    usage = server.ask("/v1/chat/completions", {"messages": said, **options})["usage"]
    asked, once = len(tokenizer.encode_prompt("白日依山尽，")), len(tokenizer.encode_prompt("春")) - 1
    assert usage["prompt_tokens"] == asked + len(tokenizer.encode("黄河")) + 1 + once
    with torch.no_grad():  # now end-of-text is always the likeliest
        decoder.transformer.final_layernorm.bias.copy_(10 * decoder.word_embeddings.weight[tokenizer.end_of_text_id])
        decoder.word_embeddings.weight[tokenizer.end_of_text_id] *= 10
    ending = exported(tmp_path / "ending", decoder, tokenizer)
    ended = ending.ask("/v1/completions", {"prompt": "白日", **options})["choices"][0]
    assert (ended["text"], ended["finish_reason"]) == ("", "stop")


# --- the command ---


def test_the_command(store: Path, decoder: Decoder, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(store / "model", decoder, tokenizer, {})
    convert(load_config("convert", ["source=model", "target=exported", "format=gguf", "dtype=float16"]))
    shown = capsys.readouterr().out
    assert "in float16" in shown
    assert "tanh form of GELU" in shown
    there = LlamaServer(store / "exported" / "model.gguf").ask(
        "/completion", {"prompt": "白日依山尽，", "n_predict": 16, "temperature": 0}
    )
    options = ["generation.temperature=0", "generation.max_new_tokens=16", "prompt=白日依山尽，"]
    assert "白日依山尽，" + there["content"] == generate(load_config("generate", ["model=model", *options]))
    with pytest.raises(FileExistsError, match="target=exported exists already; nothing is overwritten"):
        convert(load_config("convert", ["source=model", "target=exported", "format=gguf"]))
    with pytest.raises(CheckpointError, match="exported is a GGUF export.*start its own server on it"):
        pipeline(model="exported")


def test_what_is_refused(store: Path, decoder: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(store / "model", decoder, tokenizer, {})
    before = sorted(store.iterdir())
    with pytest.raises(ConfigError, match="dtype=q8_0 needs format=gguf; format=huggingface can't hold it"):
        load_config("convert", ["source=model", "target=new", "format=huggingface", "dtype=q8_0"])
    remedy = "moyun computes with torch alone: for llama.cpp convert the model with format=gguf.*docs/models.md"
    for stage in ("generate", "serve"):
        with pytest.raises(ConfigError, match=rf"backend \(command line\): no such key; {remedy}"):
            load_config(stage, ["backend=llama_cpp"])
    with pytest.raises(ConfigError, match=f"backend is no generation parameter; {remedy}"):
        pipeline(model="model", backend="llama_cpp")
    with pytest.raises(CheckpointError, match="dtype=q8_0 needs a hidden_size that 32 divides, not 48"):
        convert(load_config("convert", ["source=model", "target=new", "format=gguf", "dtype=q8_0"]))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"format=gguf needs the package gguf.*pip install 'moyun\[gguf\]'"):
        convert(load_config("convert", ["source=model", "target=new", "format=gguf"]))
    assert sorted(store.iterdir()) == before
