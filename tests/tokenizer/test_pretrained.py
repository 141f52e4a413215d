"""Other people's tokenizer folders, against transformers where it reads them too."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from modules.tokenizer.pretrained import byte_level_backend
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from modules.tokenizer.vocabulary import byte_characters

CORPUS = ["白日依山尽，黄河入海流。欲穷千里目，更上一层楼。", "the quick brown fox, the quick brown dog\n"] * 3
SPELT = ["<|endoftext|>", "<s>", "<pad>", "Ġ", "ä", "<0x41>", "\u00ad\u0120", "龘", "\ufffd"]
TEXTS = st.lists(st.one_of(st.text(), st.text("白日依山the quick \n<>"), st.sampled_from(SPELT))).map("".join)


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    return transformers


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a GPT-2 checkpoint holds: vocab.json, merges.txt, and config.json saying what ends a text."""
    folder = tmp_path_factory.mktemp("gpt2")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(CORPUS, vocab_size=400, special_tokens=["<|endoftext|>", "<s>"], show_progress=False)
    bpe.save_model(str(folder))
    write(folder / "config.json", {"model_type": "gpt2", "eos_token_id": 0, "bos_token_id": 0})
    return folder


@pytest.fixture(scope="module")
def gpt2(gpt2_folder: Path) -> Tokenizer:
    return load_tokenizer(gpt2_folder)


@pytest.fixture(scope="module")
def loaded(gpt2_folder: Path, gpt2: Tokenizer, transformers: ModuleType, tmp_path_factory: Any) -> dict[str, Tokenizer]:
    """The same as vocab.json with merges.txt, as transformers saves it, and as we do."""
    theirs, ours = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("ours")
    transformers.GPT2TokenizerFast.from_pretrained(gpt2_folder).save_pretrained(theirs)
    assert (theirs / "tokenizer.json").is_file()
    gpt2.save(ours)
    return {"files": gpt2, "theirs": load_tokenizer(theirs), "ours": load_tokenizer(ours)}


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("source", ["files", "theirs", "ours"])
@settings(deadline=None)
@given(text=TEXTS)
def test_byte_level_bpe_gives_back_any_text(loaded: dict[str, Tokenizer], source: str, text: str) -> None:
    tokenizer = loaded[source]
    assert (tokenizer.kind, tokenizer.start_ids, tokenizer.end_of_text_id) == ("byte_level_bpe", [0], 0)
    ids = tokenizer.encode(text)
    assert ids == loaded["files"].encode(text)
    assert 0 not in ids
    assert tokenizer.decode([0, *ids, 0]) == text
    decoder = tokenizer.incremental_decoder()
    assert "".join([decoder.push(token_id) for token_id in ids]) + decoder.flush() == text


def test_ids_are_those_of_transformers(gpt2_folder: Path, gpt2: Tokenizer, transformers: ModuleType) -> None:
    theirs = transformers.GPT2TokenizerFast.from_pretrained(gpt2_folder)
    for text in [*CORPUS[:2], "  two  spaces ", "龘\t\r\n", "don't 白日 THE quick", ""]:
        assert gpt2.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert len(gpt2.encode(" quick")) == 1, "merges and the space's disguise are there"
    assert gpt2.vocab_size == len(theirs)


def test_added_tokens_are_part_of_the_fingerprint() -> None:
    """Cached ids are found by it."""
    made = []
    for added in ([], ["ab", "cd"], ["cd", "ab"]):
        vocab = {character: number for number, character in enumerate(["<|endoftext|>", *byte_characters()])}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.add_special_tokens(["<|endoftext|>"])
        backend.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in added])
        made.append(Tokenizer(backend, "byte_level_bpe", "<|endoftext|>", []))
    assert len({tuple(tokenizer.encode("abcd")) for tokenizer in made}) == 3
    assert len({tokenizer.fingerprint for tokenizer in made}) == 3


def test_fingerprint_survives_saving_and_pickling(loaded: dict[str, Tokenizer]) -> None:
    again = pickle.loads(pickle.dumps(loaded["files"]))
    assert again.fingerprint == loaded["ours"].fingerprint == loaded["files"].fingerprint
    assert again.encode("<|endoftext|>") == loaded["ours"].encode("<|endoftext|>")


@pytest.mark.parametrize(
    ("files", "start", "end"),
    [
        ({"tokenizer_config.json": {"eos_token": "<|endoftext|>", "bos_token": {"content": "<s>"}}}, [1], 0),
        ({"tokenizer_config.json": {"eos_token": {"content": "<s>"}}}, [], 1),
        ({"tokenizer_config.json": {"model_max_length": 9}, "special_tokens_map.json": {"eos_token": "<s>"}}, [], 1),
        ({"config.json": {"eos_token_id": [1, 0], "bos_token_id": 50256}}, [], 1),
    ],
)
def test_end_and_start_come_from_the_first_file_that_names_an_end(
    gpt2_folder: Path, files: dict[str, Any], start: list[int], end: int, tmp_path: Path
) -> None:
    shutil.copytree(gpt2_folder, tmp_path, dirs_exist_ok=True)
    for name, content in files.items():
        write(tmp_path / name, content)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.start_ids, tokenizer.end_of_text_id) == (start, end)


def test_an_end_that_the_file_calls_plain_is_never_read_from_text(gpt2_folder: Path, tmp_path: Path) -> None:
    backend = byte_level_backend(gpt2_folder, add_prefix_space=False)
    backend.add_tokens(["<|endoftext|>", "café"])
    backend.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("<|endoftext|>café")
    assert ids[-1] == tokenizer.vocab_size - 1, "an added word is one id, and spelt as it is"
    assert 0 not in ids
    assert tokenizer.decode(ids) == "<|endoftext|>café"
    tokenizer.save(tmp_path / "ours")
    assert load_tokenizer(tmp_path / "ours").encode("<|endoftext|>café") == ids


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": normalizers.NFC()}, "changes texts .*NFC"),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "add_prefix_space"),
        ({"pre_tokenizer": pre_tokenizers.Metaspace(), "decoder": decoders.Metaspace()}, "not over bytes"),
        (
            {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])},
            "may lose some of them",
        ),
        ({"model": models.BPE({"a": 0, "<|endoftext|>": 1}, [])}, "no token for 255 of the 256 bytes"),
        ({"model": models.Unigram([("a", 0.0)], unk_id=0)}, "Unigram model"),
        ({"model": models.WordLevel({"a": 0}, unk_token="a")}, "WordLevel model"),
    ],
)
def test_a_tokenizer_that_would_lose_text_is_refused_by_name(
    gpt2_folder: Path, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    backend = byte_level_backend(gpt2_folder, add_prefix_space=False)
    for name, value in change.items():
        setattr(backend, name, value)
    backend.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "tokenizer_config.json", {"eos_token": "<|endoftext|>", "tokenizer_class": "SomeTokenizer"})
    with pytest.raises(ValueError, match=rf"no tokenizer in .*SomeTokenizer.*{reason}.*; supported: .*byte-level BPE"):
        load_tokenizer(tmp_path)


def test_what_else_a_folder_may_lack_is_named(gpt2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ValueError, match="SentencePiece model; supported:"):
        load_tokenizer(tmp_path)
    shutil.copyfile(gpt2_folder / "vocab.json", tmp_path / "vocab.json")
    (tmp_path / "merges.txt").write_text("one two three\n")
    with pytest.raises(ValueError, match="merges.txt are not readable"):
        load_tokenizer(tmp_path)
    shutil.copyfile(gpt2_folder / "merges.txt", tmp_path / "merges.txt")
    with pytest.raises(ValueError, match="no end of text: name it as eos_token"):
        load_tokenizer(tmp_path)
    write(tmp_path / "tokenizer_config.json", {"eos_token": "</s>"})
    with pytest.raises(ValueError, match="no token '</s>'"):
        load_tokenizer(tmp_path)
    write(tmp_path / "added_tokens.json", {"</s>": 400})
    with pytest.raises(ValueError, match="added_tokens.json adds </s> .*transformers 5"):
        load_tokenizer(tmp_path)


def test_bert_is_known_by_its_class_or_its_model(transformers: ModuleType, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"白日依山尽，", "hello", "##lo", "hel"]
    text = "白日[SEP] HELLO hello hellolo ，"
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    bert = load_tokenizer(tmp_path)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    saved = tmp_path / "saved"
    theirs.save_pretrained(saved)
    assert not (saved / "vocab.txt").exists(), "transformers 5 writes tokenizer.json alone"
    again = load_tokenizer(saved)
    assert (again.kind, again.start_ids, again.end_of_text_id) == ("bert", [2], 3)
    assert again.encode(text) == bert.encode(text)
    assert again.encode("白 hello") == theirs("白 hello", add_special_tokens=False)["input_ids"]
    # A GPT-2 with BERT's vocabulary (common for Chinese) says so in config.json; tokenizer.json may lie beside it.
    train_tokenizer(CORPUS).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    write(tmp_path / "config.json", {"model_type": "gpt2", "tokenizer_class": "BertTokenizerFast"})
    assert load_tokenizer(tmp_path).fingerprint == bert.fingerprint
