from __future__ import annotations

import json
import math
import pickle
import shutil
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.tokenizer import vocabulary as tokenizer_backends
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tests.helpers.examples import encode_example, encode_examples
from tests.helpers.models import ROOT

DATA = ROOT / "tests" / "files"
MODELSCOPE = {"bert": DATA / "modelscope" / "base", "jieba_bpe": DATA / "modelscope" / "megatron_tp1"}
FACTS = json.loads((DATA / "tokenizers" / "facts.json").read_text(encoding="utf-8"))
CORPUS = [
    "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "天生我材必有用，千金散尽还复来。",
    "the quick brown fox, the quick brown dog\n",
    "[SEP] <0x41> <|endoftext|>",
] * 3
# What a vocabulary must not take for one of its own: special tokens and byte tokens, spelt out by a user.
SPELT = ["<|endoftext|>", "<0x41>", "<0xE4>", "[SEP]", "[CLS]", "[unused1]", "<sep>", "<unk>", "{src_txt}"]
TEXTS = st.lists(st.one_of(st.text(), st.text("白日依山尽，the \n<>"), st.sampled_from(SPELT))).map("".join)
OURS: list[Literal["character", "bpe"]] = ["character", "bpe"]
ALL = [*OURS, "bert", "jieba_bpe"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """All kinds, ours once more as "saved …" after save and load."""
    found = {kind: load_tokenizer(folder) for kind, folder in MODELSCOPE.items()}
    for kind in OURS:
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = train_tokenizer(CORPUS, kind, vocab_size=420)
        found[kind].save(folder)
        found[f"saved {kind}"] = load_tokenizer(folder)
    return found


@pytest.mark.parametrize("kind", [*OURS, *(f"saved {kind}" for kind in OURS)])
@settings(deadline=None)
@given(text=TEXTS)
def test_any_text_comes_back(tokenizers: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*tokenizer.start_ids, *ids, tokenizer.end_of_text_id]) == text
    assert tokenizer.end_of_text_id not in ids


def test_ids_are_end_bytes_characters_by_frequency_then_merges(tokenizers: dict[str, Tokenizer]) -> None:
    character = train_tokenizer(["山山山水水木木火"], "character", min_frequency=2)
    assert character.encode("山木水") == [257, 258, 259]  # 木 U+6728 and 水 U+6C34 tie: by code point
    assert character.encode("火") == [1 + byte for byte in "火".encode()]
    assert (character.vocab_size, character.end_of_text_id, character.start_ids) == (260, 0, [0])
    assert train_tokenizer(["山山山水水木木火"], vocab_size=258, min_frequency=1).vocab_size == 258
    bpe = tokenizers["bpe"]
    assert len(bpe.encode("quick")) == len(bpe.encode("明月")) == 1
    assert len(bpe.encode("明，月")) == 3


def test_merges_cross_neither_signs_nor_rare_characters() -> None:
    bpe = train_tokenizer(["山，水", "山 水", "山\n水", "甲乙", "甲火乙"] * 5 + ["丙稀丁", "丙罕丁"], "bpe", 999)
    merged = {token.decode() for token in bpe.token_bytes.values() if len(token) > 4}
    assert merged == {"甲乙", "火乙", "甲火乙"}


@pytest.mark.parametrize("kind", OURS)
def test_training_again_gives_the_same_tokenizer(
    tokenizers: dict[str, Tokenizer], kind: Literal["character", "bpe"]
) -> None:
    again = train_tokenizer(iter(CORPUS[::-1]), kind, vocab_size=420)
    assert again.fingerprint == tokenizers[kind].fingerprint


@pytest.mark.parametrize("kind", ALL)
def test_fingerprint_survives_saving_and_pickling(tokenizers: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizers[kind].with_prompt_template("对：{src_txt}\n")
    tokenizer.save(tmp_path)
    saved, pickled = load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))
    for copy in (saved, pickled):
        assert copy.fingerprint == tokenizer.fingerprint
        assert copy.prompt_template == tokenizer.prompt_template
        assert [copy.encode(text) for text in SPELT] == [tokenizer.encode(text) for text in SPELT]
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_fingerprints_differ_where_ids_do(tokenizers: dict[str, Tokenizer]) -> None:
    fingerprints = {tokenizers[kind].fingerprint for kind in ALL}
    fingerprints.add(tokenizers["character"].with_prompt_template("{src_txt}\n").fingerprint)
    fingerprints.add(train_tokenizer(CORPUS, vocab_size=300).fingerprint)
    assert len(fingerprints) == len(ALL) + 2


def test_bert_ids_equal_the_reference(tokenizers: dict[str, Tokenizer]) -> None:
    bert, text = tokenizers["bert"], FACTS["generate_from_text"]["text"]
    facts = FACTS["preprocess_base"]
    row = facts["train_src_only"]["input_ids"]
    assert encode_example(bert, text).ids == row[: row.index(0)]
    assert bert.encode_prompt(text) == FACTS["generate_from_text"]["sequences"][0][: 1 + len(text)]
    target = facts["train_src_and_tgt"]["labels"]  # [CLS] target [SEP] padding: the reference's defect
    target_text = bert.decode(target)
    assert target_text == "白日依山尽"
    example = encode_example(bert, text, target_text)
    assert example.ids == [*row[: row.index(0)][:-1], *target[1 : target.index(0)]]
    assert example.prompt_length == 1 + len(text)


def test_bert_lower_cases_and_takes_no_special_token_from_text(tokenizers: dict[str, Tokenizer]) -> None:
    bert, unknown = tokenizers["bert"], 2
    assert bert.encode("床 É[SEP]\n前") == [6, unknown, unknown, unknown, unknown, 7]
    assert (bert.start_ids, bert.end_of_text_id, bert.vocab_size) == ([3], 4, 122)


def test_bert_decodes_chinese_without_and_latin_with_spaces(tmp_path: Path) -> None:
    words = [*"天生，。,'()t", "hello", "wor", "##ld", "don", "##生", "[UNK]", "[CLS]", "[SEP]"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    bert = load_tokenizer(tmp_path)
    assert bert.decode(bert.encode("Hello world, (hello) don't")) == "hello world, (hello) don't"
    assert bert.decode(bert.encode("天生，hello world 天 生。")) == "天生，hello world天生。"
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(tmp_path).encode("Hello") == [words.index("[UNK]")]


def test_jieba_bpe_ids_equal_the_reference(tokenizers: dict[str, Tokenizer]) -> None:
    jieba_bpe, facts = tokenizers["jieba_bpe"], FACTS["jieba"]
    assert jieba_bpe.vocab_size == facts["special"]["vocab_size"]
    assert jieba_bpe.end_of_text_id == facts["special"]["sep"]
    assert jieba_bpe.encode("天<sep>生") == facts["literal_sep_in_text"]
    assert jieba_bpe.decode(facts["with_id"]) == "天生"
    assert encode_example(jieba_bpe, "天生我材必有用") == (facts["src_only"]["tokens"][:2], 1, False)
    assert encode_example(jieba_bpe, "").prompt_length == 1, "no start token: nothing predicts the first id"
    with_target = encode_example(jieba_bpe, "天生我材必有用\n", "疑是地上霜")
    assert with_target.ids == facts["src_tgt"]["tokens"][: facts["src_tgt"]["inputs_len"]]
    assert with_target.prompt_length == facts["src_tgt"]["prompts_len"]
    too_long = facts["too_long"]["tokens"]
    assert jieba_bpe.encode("床前明月光，疑是地上霜。" * 2)[: len(too_long)] == too_long
    assert jieba_bpe.encode("") == jieba_bpe.start_ids == []


def test_without_jieba_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    tokenizer_backends.jieba_segmenter.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'moyun\[jieba\]'"):
        load_tokenizer(MODELSCOPE["jieba_bpe"])


@pytest.mark.parametrize("kind", ALL)
@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS)), limit=st.none() | st.integers(9, 20))
def test_batches_equal_single_calls(
    tokenizers: dict[str, Tokenizer], kind: str, rows: list[tuple[str, str]], limit: int | None
) -> None:
    tokenizer = tokenizers[kind].with_prompt_template("问{src_txt}答")
    sources, targets = [source for source, _ in rows], [target for _, target in rows]
    assert tokenizer.encode_batch(sources) == [tokenizer.encode(source) for source in sources]
    singles = [encode_example(tokenizer, source, target, limit) for source, target in rows]
    assert encode_examples(tokenizer, sources, targets, limit) == singles
    singles = [encode_example(tokenizer, source, None, limit) for source in sources]
    assert encode_examples(tokenizer, sources, limit=limit) == singles


@settings(deadline=None)
@given(text=TEXTS)
def test_character_look_up_equals_the_library(tokenizers: dict[str, Tokenizer], text: str) -> None:
    character = tokenizers["character"]
    assert character.encode(text) == character._encode_with_backend([text])[0]


def test_prompt_is_start_template_source(tokenizers: dict[str, Tokenizer]) -> None:
    plain = tokenizers["bpe"]
    asking = plain.with_prompt_template("the qu{src_txt}白")
    whole = [0, *plain.encode("the qu"), *plain.encode("ick日"), *plain.encode("白")]
    assert asking.encode_prompt("ick日") == whole
    assert asking.encode_prompt("ick日", limit=len(whole) - 1) == [*whole[:-2], whole[-1]]
    assert plain.encode_prompt("白日") == [0, *plain.encode("白日")]
    assert plain.prompt_template is None
    example = encode_example(asking, "ick日", "山")
    assert example == ([*whole, *plain.encode("山"), 0], len(whole), False)
    with pytest.raises(ValueError, match="no room for the text"):
        asking.encode_prompt("ick日", limit=len(whole) - len(plain.encode("ick日")))


@pytest.mark.parametrize("template", ["", "对对子", "{src_txt}{src_txt}", "{tgt_txt}"])
def test_template_must_hold_the_source_once(tokenizers: dict[str, Tokenizer], template: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        tokenizers["bpe"].with_prompt_template(template)


@settings(deadline=None)
@given(
    source=TEXTS, target=st.none() | TEXTS, limit=st.integers(2, 40), template=st.sampled_from([None, "问{src_txt}答"])
)
def test_limit_cuts_rows_but_leaves_something_to_train_on(
    tokenizers: dict[str, Tokenizer], source: str, target: str | None, limit: int, template: str | None
) -> None:
    tokenizer = tokenizers["character"].with_prompt_template(template)
    empty_prompt = len(tokenizer.encode_prompt(""))
    smallest = 2 if target is None else empty_prompt + 2
    if limit < smallest:
        with pytest.raises(ValueError, match=f"at least {smallest}"):
            encode_example(tokenizer, source, target, limit)
        return
    whole, row = encode_example(tokenizer, source, target), encode_example(tokenizer, source, target, limit)
    assert row.cut == (len(whole.ids) > limit)
    assert len(row.ids) == min(limit, len(whole.ids))
    assert row.prompt_length < len(row.ids)
    trained = [*tokenizer.encode(source if target is None else target), tokenizer.end_of_text_id]
    kept = row.ids[row.prompt_length :]
    assert kept == trained[: len(kept)]
    if target is not None:
        assert row.ids[: row.prompt_length] == tokenizer.encode_prompt(source, row.prompt_length)
        assert row.prompt_length >= min(whole.prompt_length, math.ceil(limit / 4))
        # The target loses tokens only where the prompt is down to its minimum.
        minimum = max(math.ceil(limit / 4), empty_prompt + 1)
        assert kept == trained or row.prompt_length <= minimum


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 430) | st.integers(1, 256) | st.integers(120, 260)))
@pytest.mark.parametrize("kind", ALL)
def test_streamed_pieces_are_the_decoded_text(tokenizers: dict[str, Tokenizer], kind: str, ids: list[int]) -> None:
    tokenizer = tokenizers[kind]
    decoder = tokenizer.incremental_decoder()
    pieces = [decoder.push(token_id) for token_id in ids] + [decoder.flush()]
    text = tokenizer.decode(ids)
    assert "".join(pieces) == text
    if kind != "bert":
        content = b"".join(tokenizer.token_bytes.get(token_id, b"") for token_id in ids)
        assert text == content.decode("utf-8", "replace")
    assert [decoder.push(token_id) for token_id in ids] == pieces[:-1], "flush leaves the decoder as new"


def test_streaming_holds_back_a_broken_character_only(tokenizers: dict[str, Tokenizer]) -> None:
    character = tokenizers["character"]
    decoder = character.incremental_decoder()
    ids = [*character.encode("白"), *character.encode("龘"), *character.encode("日")]
    assert [decoder.push(token_id) for token_id in ids] == ["白", "", "", "龘", "日"]
    assert decoder.push(1 + 0xE4) == ""
    assert (decoder.flush(), decoder.flush()) == ("\ufffd", "")


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(("bad", "reason"), [(None, "not text"), ("山\ud800", "character 1 is half a surrogate")])
def test_what_is_not_text_is_named_by_row(tokenizers: dict[str, Tokenizer], kind: str, bad: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"row 1 .*{reason}"):
        tokenizers[kind].encode_batch(["山", bad])


def test_a_folder_without_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab\.txt is missing \(found: no folder\)"):
        load_tokenizer(tmp_path / "nowhere")
    shutil.copyfile(MODELSCOPE["jieba_bpe"] / "configuration.json", tmp_path / "configuration.json")
    with pytest.raises(ValueError, match=rf"{tmp_path.name}.*tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    config = {"kind": "bpe", "end_of_text": "<|end|>", "start": []}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not a readable tokenizer\.json"):
        load_tokenizer(tmp_path)
    shutil.copyfile(MODELSCOPE["jieba_bpe"] / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"no token '<\|end\|>'"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"kind": "bpe"}')
    with pytest.raises(ValueError, match="no key 'end_of_text'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("texts", "arguments", "reason"),
    [
        ([], {}, "no text"),
        (["山"], {"kind": "bert"}, "cannot be trained"),
        (["山"], {"vocab_size": 257}, "at least 258"),
        (["山"], {"min_frequency": 0}, "min_frequency"),
        (["\udc80"], {}, "surrogate"),
    ],
)
def test_training_refuses_what_makes_no_tokenizer(texts: list[str], arguments: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        train_tokenizer(texts, **arguments)
