"""GGUF exports: what llama.cpp makes of them beside torch, in moyun's backend and by itself."""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from modules.checkpoint import formats as interop
from modules.checkpoint.weights import CheckpointError, StoredModel, stored
from modules.config.generation import GenerationConfig
from modules.config.loader import ConfigError, load_config
from modules.inference.llama_bindings import LlamaContext, LlamaModel, library
from modules.inference.llama_cpp import LlamaCpp, decode, load_llama_cpp
from modules.inference.text_generator import TextGenerator
from modules.model.decoder import Decoder
from modules.model.sampling import generate as generate_ids
from modules.model.sampling import penalize
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from modules.tracking.registry import log_model
from pipelines import pipeline
from pipelines.convert import convert
from pipelines.generate import generate
from tests.helpers.models import ROOT, make_config, make_decoder, save_model

pytest.importorskip("gguf", reason="the extra gguf is not installed")
xllamacpp = pytest.importorskip("xllamacpp", reason="the extra llama_cpp is not installed")

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


def exported(folder: Path, decoder: Decoder, tokenizer: Tokenizer, dtype: str = "keep") -> LlamaCpp:
    folder.mkdir()
    interop.write(folder, "gguf", StoredModel(decoder.config, stored(decoder.state_dict())), tokenizer, dtype=dtype)
    return LlamaCpp(folder)


def model_of(tokenizer: Tokenizer, **changes: Any) -> Decoder:
    return make_decoder(make_config(tokenizer.vocab_size, **({"hidden_size": 64} | changes)))


def by_row(tokens: Iterable[tuple[int, int | None]]) -> list[list[int]]:
    rows: dict[int, list[int]] = {}
    for row, token in tokens:
        rows.setdefault(row, []).extend([] if token is None else [token])
    return [rows[row] for row in sorted(rows)]


def logits(model: LlamaCpp, prompts: list[list[int]]) -> torch.Tensor:
    context = LlamaContext(model.model, len(prompts), 96, sum(map(len, prompts)), 1)
    result = decode(context, prompts, range(len(prompts)))
    context.close()
    return result


# --- numbers ---


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_torchs_but_for_near_ties(
    kind: str, hidden_act: str, folders: dict[str, Path], poems: dict[str, list[str]], tmp_path: Path
) -> None:
    """Random weights know nothing and often hesitate: where the two go apart, torch's own choice was by a hair."""
    tokenizer = load_tokenizer(folders[kind])
    decoder = model_of(tokenizer, hidden_act=hidden_act)
    model = exported(tmp_path / "gguf", decoder, tokenizer)
    prompts = [tokenizer.encode_prompt(text[:12]) for text in poems["test"][:8]]
    plain = GenerationConfig(max_new_tokens=64, temperature=0)
    end = tokenizer.end_of_text_id
    assert by_row(model.generate(prompts, plain, end)) == by_row(generate_ids(decoder, prompts, plain, end))
    # A penalty, since greedy text of random weights is else one token over and over.
    varied = GenerationConfig(max_new_tokens=64, temperature=0, repetition_penalty=1.5)
    there, here = (
        by_row(tokens) for tokens in (model.generate(prompts, varied, end), generate_ids(decoder, prompts, varied, end))
    )
    for prompt, found, expected in zip(prompts, there, here, strict=True):
        apart = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
        if apart is not None:
            ids = [*prompt, *expected[:apart]]
            logits = decoder(torch.tensor([ids]))[:, -1].detach()
            scores = penalize(logits, [[i for i in ids if i != end]], 1.5)[0]
            assert 0 <= float(scores[expected[apart]] - scores[found[apart]]) < 4e-3
    assert sum(map(len, here)) > 300


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 3e-3), ("float16", 5e-3), ("bfloat16", 3e-2), ("q8_0", 1e-1)]
)
def test_logits_are_near(
    dtype: str, tolerance: float, tokenizer: Tokenizer, poems: dict[str, list[str]], tmp_path: Path
) -> None:
    """In units of logits whose standard deviation is 0.85."""
    decoder = model_of(tokenizer, hidden_act="gelu_new")
    prompts = [tokenizer.encode_prompt(text)[:24] for text in poems["test"][:8]]
    expected = torch.stack([decoder(torch.tensor([prompt]))[0, -1] for prompt in prompts])
    found = logits(exported(tmp_path / "gguf", decoder, tokenizer, dtype), prompts)
    difference = float((found - expected).detach().abs().max())
    assert tolerance / 20 < difference < tolerance  # below it, another format than asked for


def test_sizes_are_those_of_the_number_formats(tokenizer: Tokenizer, tmp_path: Path) -> None:
    decoder = model_of(tokenizer)
    sizes = {}
    for dtype in ("float32", "float16", "q8_0"):
        exported(tmp_path / dtype, decoder, tokenizer, dtype)
        sizes[dtype] = (tmp_path / dtype / "model.gguf").stat().st_size
    matrices = sum(p.numel() for name, p in decoder.named_parameters() if p.dim() > 1 and "position" not in name)
    assert sizes["float32"] - sizes["float16"] == 2 * matrices
    assert sizes["float32"] - sizes["q8_0"] == pytest.approx(matrices * (4 - 34 / 32), rel=1e-3)  # and padding


# --- vocabularies ---

TOKENIZE = (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32])
PIECE = (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32])


def function(name: str, result: Any, arguments: list[Any]) -> Callable[..., int]:
    found = getattr(library(), name)
    found.restype, found.argtypes = result, arguments
    return found  # type: ignore[no-any-return]


def ids_there(model: LlamaModel, text: str) -> list[int]:
    """As llama-server makes them, but with special tokens as text."""
    tokenize = function("llama_tokenize", TOKENIZE[0], [*TOKENIZE[1], ctypes.c_bool, ctypes.c_bool])
    spelt = text.encode()
    found = (ctypes.c_int32 * (len(spelt) + 8))()
    count = tokenize(library().llama_model_get_vocab(model.model), spelt, len(spelt), found, len(found), True, False)
    return list(found[:count])


def text_there(model: LlamaModel, ids: list[int]) -> str:
    to_piece = function("llama_token_to_piece", PIECE[0], [*PIECE[1], ctypes.c_bool])
    vocabulary, buffer, result = library().llama_model_get_vocab(model.model), ctypes.create_string_buffer(512), b""
    for token in ids:
        count = to_piece(vocabulary, token, buffer, len(buffer), 0, False)
        result += buffer.raw[:count]
    return result.decode(errors="replace")


@pytest.mark.parametrize("kind", EXACT)
def test_llama_cpp_makes_the_same_ids_and_texts(
    kind: str, folders: dict[str, Path], poems: dict[str, list[str]], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(folders[kind])
    model = exported(tmp_path / "gguf", model_of(tokenizer), tokenizer).model
    for text in [*poems["train"], *poems["test"], *HARD]:
        ids = tokenizer.encode_prompt(text)
        assert ids_there(model, text) == ids
        assert text_there(model, ids) == text


def test_berts_ids_are_the_same_but_for_unknown_characters(
    folders: dict[str, Path], poems: dict[str, list[str]], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(folders["bert"])
    model = exported(tmp_path / "gguf", model_of(tokenizer), tokenizer).model
    texts = [*poems["train"], "Hello，WORLD\n2024年 GPT-3，《白日》", "hello hello 白日loing\t依山"]
    for text in texts:
        assert ids_there(model, text) == tokenizer.encode_prompt(text)
        if text.isascii() is False and not any(c.isascii() for c in text):
            assert text_there(model, tokenizer.encode(text)) == text
    assert text_there(model, tokenizer.encode("白日hello world。")) == "白日 hello world。"


def test_what_jieba_cuts_is_at_least_written_right(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folders["jieba_bpe"])
    decoder = model_of(tokenizer)
    (tmp_path / "gguf").mkdir()
    model = StoredModel(decoder.config, stored(decoder.state_dict()))
    notes = interop.write(tmp_path / "gguf", "gguf", model, tokenizer)
    assert "can't cut words with jieba: hand it token ids" in notes[0]
    ids = tokenizer.encode("床前明月光，疑是地上霜。\n")
    assert text_there(LlamaCpp(tmp_path / "gguf").model, ids) == "床前明月光，疑是地上霜。\n"


@pytest.mark.parametrize("kind", KINDS)
def test_metadata(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folders[kind])
    # Rows of the embedding without a token, as published checkpoints have them.
    decoder = model_of(tokenizer, max_position_embeddings=80)
    decoder = make_decoder(make_config(tokenizer.vocab_size + 5, hidden_size=64, max_position_embeddings=80))
    model = exported(tmp_path / "gguf", decoder, tokenizer).model
    vocabulary = library().llama_model_get_vocab(model.model)
    number = (ctypes.c_int32, [ctypes.c_void_p])
    assert function("llama_model_n_ctx_train", *number)(model.model) == 80
    assert function("llama_vocab_eos", *number)(vocabulary) == tokenizer.end_of_text_id
    assert model.vocab_size == tokenizer.vocab_size + 5
    assert ids_there(model, "")[: len(tokenizer.start_ids)] == tokenizer.start_ids
    assert text_there(model, [tokenizer.end_of_text_id, *tokenizer.start_ids, tokenizer.vocab_size + 1]) == ""
    assert load_tokenizer(tmp_path / "gguf").fingerprint == tokenizer.fingerprint


def test_llama_server_takes_text_applies_the_template_and_stops(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer = tokenizer.with_prompt_template("问：{src_txt}\n答：")
    decoder = model_of(tokenizer)
    ours = TextGenerator(exported(tmp_path / "gguf", decoder, tokenizer), tokenizer)
    expected = ours("白日依山尽，", temperature=0, max_new_tokens=8)["text"]
    server = serve(tmp_path / "gguf")
    options = {"max_tokens": 8, "temperature": 0, "cache_prompt": False}
    found = server.handle_completions({"prompt": "问：白日依山尽，\n答：", **options})
    assert found["choices"][0]["text"].replace("�", "") == expected.replace("�", "")
    said = [{"role": "user", "content": "白日依山尽，"}]
    assert server.handle_chat_completions({"messages": said, **options})["usage"]["prompt_tokens"] == len(
        tokenizer.encode_prompt("白日依山尽，")
    )
    with torch.no_grad():  # now end-of-text is always the likeliest
        decoder.transformer.final_layernorm.bias.copy_(10 * decoder.word_embeddings.weight[tokenizer.end_of_text_id])
        decoder.word_embeddings.weight[tokenizer.end_of_text_id] *= 10
    assert exported(tmp_path / "ending", decoder, tokenizer)
    ended = serve(tmp_path / "ending").handle_completions({"prompt": "白日", **options})["choices"][0]
    assert (ended["text"], ended["finish_reason"]) == ("", "stop")


def serve(folder: Path) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(folder / "model.gguf")
    parameters.n_ctx, parameters.warmup, parameters.verbosity = 96, False, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(parameters)


# --- the backend ---


@pytest.fixture
def generator(decoder: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> TextGenerator:
    return TextGenerator(exported(tmp_path / "gguf", decoder, tokenizer), tokenizer)


def test_a_batch_equals_its_rows_one_by_one_and_streamed(
    generator: TextGenerator, poems: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.inference.llama_cpp.ROWS_AT_ONCE", 3)
    prompts = [text[: 3 + 2 * row] for row, text in enumerate(poems["test"][:7])]
    options: dict[str, Any] = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 3, "max_new_tokens": 24}
    batch = generator(prompts, **options)
    assert batch == [generator(prompt, **options) for prompt in prompts]
    assert batch == [{"text": prompt + "".join(generator.stream(prompt, **options))} for prompt in prompts]
    assert batch != generator(prompts, **options | {"seed": 4})


def test_stop_texts_lengths_and_a_reader_that_goes(generator: TextGenerator, tokenizer: Tokenizer) -> None:
    whole = generator("白日依山尽，", temperature=0, max_new_tokens=40, repetition_penalty=1.5)["text"][6:]
    stop = next(c for c in whole[5:] if c.isalpha())
    stopped = generator("白日依山尽，", temperature=0, max_new_tokens=40, repetition_penalty=1.5, stop=stop)
    assert stopped["text"] == "白日依山尽，" + whole[: whole.index(stop)]
    model: Any = generator.decoder
    config = GenerationConfig(max_new_tokens=500, temperature=0)
    tokens = list(model.generate([[5] * 90, [5] * 95], config, -1))
    assert [row for row, token in tokens if token is not None].count(0) == 6
    assert tokens.count((1, None)) == 1
    with pytest.raises(ValueError, match="prompt 0 has 96 tokens, but the model has only 96 positions"):
        next(model.generate([[5] * 96], config, -1))
    stream = generator.stream("白日")
    next(stream)
    stream.close()


def test_another_interface_is_an_error(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library(), "llama_n_seq_max", lambda context: 7)
    with pytest.raises(ValueError, match="takes n_seq_max for 7, not 1: it isn't a version that moyun knows"):
        generator("白日")


def test_the_commands(store: Path, decoder: Decoder, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(store / "model", decoder, tokenizer, {})
    convert(load_config("convert", ["source=model", "target=exported", "format=gguf", "dtype=float16"]))
    shown = capsys.readouterr().out
    assert "in float16" in shown
    assert "tanh form of GELU" in shown
    options = ["generation.temperature=0", "generation.max_new_tokens=16", "prompt=白日依山尽，"]
    there = generate(load_config("generate", ["model=exported", "backend=llama_cpp", *options]))
    assert there == generate(load_config("generate", ["model=model", *options]))
    file = pipeline(model="exported/model.gguf", backend="llama_cpp", temperature=0, max_new_tokens=16)
    assert file("白日依山尽，")["text"] == there
    with pytest.raises(FileExistsError, match="target=exported exists already; nothing is overwritten"):
        convert(load_config("convert", ["source=model", "target=exported", "format=gguf"]))
    with pytest.raises(CheckpointError, match="exported is a GGUF export.*give backend=llama_cpp"):
        pipeline(model="exported")


def test_what_is_refused(store: Path, decoder: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(store / "model", decoder, tokenizer, {})
    before = sorted(store.iterdir())
    with pytest.raises(ConfigError, match="dtype=q8_0 needs format=gguf; format=huggingface can't hold it"):
        load_config("convert", ["source=model", "target=new", "format=huggingface", "dtype=q8_0"])
    with pytest.raises(ConfigError, match="dtype=float32 is for backend=torch"):
        load_config("generate", ["backend=llama_cpp", "dtype=float32"])
    with pytest.raises(CheckpointError, match="dtype=q8_0 needs a hidden_size that 32 divides, not 48"):
        convert(load_config("convert", ["source=model", "target=new", "format=gguf", "dtype=q8_0"]))
    for model in ("model", "models:/moyun@champion"):
        with pytest.raises(CheckpointError, match=f"convert source={model} target=NEW_FOLDER format=gguf"):
            pipeline(model=model, backend="llama_cpp")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"format=gguf needs the package gguf.*pip install 'moyun\[gguf\]'"):
        convert(load_config("convert", ["source=model", "target=new", "format=gguf"]))
    assert sorted(store.iterdir()) == before


def test_what_is_missing_or_damaged(generator: TextGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tmp_path / "gguf", tmp_path / "cut")
    content = (tmp_path / "cut" / "model.gguf").read_bytes()
    (tmp_path / "cut" / "model.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="llama.cpp can't load .*cut/model.gguf: it is damaged"):
        load_llama_cpp(tmp_path / "cut")
    library.cache_clear()
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ValueError, match=r"needs the package xllamacpp.*pip install 'moyun\[llama_cpp\]'"):
        load_llama_cpp(tmp_path / "gguf")


def test_a_registered_model_is_served_by_llama_cpp(
    store: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = model_of(tokenizer)
    folder = save_model(store / "model", decoder, tokenizer, {})
    with mlflow.start_run():
        uri = log_model(folder)
    monkeypatch.setenv("MLFLOW_PYFUNC_INFERENCE_CONFIG", '{"backend": "llama_cpp", "dtype": "q8_0"}')
    served = mlflow.pyfunc.load_model(uri).unwrap_python_model()
    assert isinstance(served.generator.decoder, LlamaCpp)
    options = {"temperature": 0, "max_new_tokens": 16}
    expected = TextGenerator(exported(store / "gguf", decoder, tokenizer, "q8_0"), tokenizer)("白日依山尽，", **options)
    assert served.generator("白日依山尽，", **options) == expected
