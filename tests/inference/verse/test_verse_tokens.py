"""Verse in tokens: what a model writes keeps the form whatever its vocabulary and whoever is beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modules.config.base import ConfigError
from modules.config.generation import GenerationConfig
from modules.config.verse.forms import FORMS
from modules.config.verse.han import han_only
from modules.data.corpora.verse import clauses
from modules.evaluation.verse.form import line_lengths, regular, rhyming
from modules.inference.prediction.row_generator import RowGenerator
from modules.inference.row_constraints import constraint_of
from modules.inference.text_generator import TextGenerator, require_room
from modules.inference.verse.verse_tokens import VerseTokens
from modules.model import sampling
from modules.model.decoder import Decoder
from modules.model.decoding.decode_graph import FREE, GraphBatch
from modules.tokenizer.prompt_template import TURNS_TEMPLATE
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tests.helpers.models import make_config, make_decoder

OPENINGS = ["白日依山尽，", "", "床前明月光，疑是地上霜。", "春", "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"]
CONFIG = GenerationConfig(seed=3, max_new_tokens=90)


@pytest.fixture
def generator(decoder: Decoder, tokenizer: Tokenizer) -> TextGenerator:
    return TextGenerator(decoder, tokenizer)


def wanted_lengths(form: str) -> list[int]:
    return [sum(sign not in "韵换" for sign in line) for line in clauses(FORMS[form][0])]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tones", [True, False])
def test_whatever_is_sampled_keeps_the_form_and_ends_by_itself(
    generator: TextGenerator, form: str, tones: bool
) -> None:
    """A decoder of random weights, which by itself writes neither lines nor rhymes."""
    generator.decoder = make_decoder(make_config(generator.tokenizer.vocab_size, max_position_embeddings=128)).eval()
    rows = generator.write(["", "", "春"], GenerationConfig(seed=3, max_new_tokens=120, form=form, tones=tones))
    for prompt, row in zip(["", "", "春"], rows, strict=True):
        assert row.stopped
        assert line_lengths(prompt + row.text) == wanted_lengths(form)
        if form[0] in "五七":
            assert regular(prompt + row.text) == rhyming(prompt + row.text) == 1.0


def test_a_row_is_what_it_is_alone_and_without_a_form_nothing_changes(generator: TextGenerator) -> None:
    parameters: dict[str, Any] = {"seed": 3, "max_new_tokens": 90, "form": "五绝", "repetition_penalty": 1.2}
    together = generator(OPENINGS, **parameters)
    assert together == [generator(opening, **parameters) for opening in OPENINGS]
    assert together[-1]["text"] == OPENINGS[-1]  # complete: nothing is added
    streamed = "".join(generator.stream(OPENINGS[0], **parameters))
    assert OPENINGS[0] + streamed == together[0]["text"]


def test_rows_with_and_without_a_form_share_a_batch(decoder: Decoder, tokenizer: Tokenizer) -> None:
    configs = [GenerationConfig(seed=1, max_new_tokens=60, form=form) for form in ("五绝", None, "七绝")]
    prompts = [tokenizer.encode_prompt("春") for _ in configs]

    def written(numbers: list[int]) -> list[list[int]]:
        found: dict[int, list[int]] = {number: [] for number in range(len(numbers))}
        constraints = [constraint_of(tokenizer, prompts[n], configs[n]) for n in numbers]
        chosen = [configs[n] for n in numbers]
        for row, token in sampling.generate(
            decoder, [prompts[n] for n in numbers], chosen, tokenizer.end_of_text_id, constraints=constraints
        ):
            found[row] += [] if token is None else [token]
        return list(found.values())

    together = written([0, 1, 2])
    assert together == [written([n])[0] for n in range(3)]
    unmasked = list(sampling.generate(decoder, [prompts[1]], configs[1], tokenizer.end_of_text_id))
    assert together[1] == [token for _, token in unmasked if token is not None]


@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_captured_steps_write_the_same(
    decoder: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, penalty: float
) -> None:
    """A GPU mustn't compute ahead what hangs on the token before; rows without a form are beside."""
    forms = ["五绝", None, "七律", "渔歌子"]
    configs = [GenerationConfig(seed=2, max_new_tokens=70, form=form, frequency_penalty=penalty) for form in forms]
    prompts = [tokenizer.encode_prompt("春") for _ in configs]

    def written() -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]
        constraints = [constraint_of(tokenizer, *each) for each in zip(prompts, configs, strict=True)]
        end = tokenizer.end_of_text_id
        for row, token in sampling.generate(decoder, prompts, configs, end, constraints=constraints):
            found[row] += [] if token is None else [token]
        return found

    expected = written()
    monkeypatch.setattr(sampling, "open_batch", GraphBatch)
    assert written() == expected
    FREE.clear()


def byte_level(folder: Path) -> Tokenizer:
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    corpus = ["白日依山尽，黄河入海流。欲穷千里目，更上一层楼。" * 2, "the quick brown fox\n"] * 3
    bpe.train_from_iterator(corpus, vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(folder))
    (folder / "config.json").write_text('{"eos_token_id": 0, "bos_token_id": 0}')
    return load_tokenizer(folder)


def test_tokens_of_several_characters_and_parts_of_one_keep_the_form(
    poems: dict[str, list[str]], tmp_path: Path
) -> None:
    bpe, in_bytes = train_tokenizer(poems["train"], "bpe", vocab_size=6000), byte_level(tmp_path)
    assert any(VerseTokens(bpe, "五绝", False).longer.values())
    assert len(in_bytes.encode("春")) == 3  # its bytes
    for own in (bpe, in_bytes):
        decoder = make_decoder(make_config(own.vocab_size, max_position_embeddings=200))
        config = GenerationConfig(seed=3, max_new_tokens=190, form="七绝")
        for prompt, row in zip(["春", ""], TextGenerator(decoder, own).write(["春", ""], config), strict=True):
            assert row.stopped
            assert regular(prompt + row.text) == rhyming(prompt + row.text) == 1.0
            assert "\ufffd" not in row.text


def test_an_answer_by_a_template_begins_its_own_verse(decoder: Decoder, tokenizer: Tokenizer) -> None:
    own = tokenizer.with_prompt_template("题：{src_txt}\n")
    row = TextGenerator(decoder, own).write(
        ["思君如满月，夜夜减清辉"], GenerationConfig(seed=1, max_new_tokens=40, form="五绝")
    )[0]
    assert line_lengths(row.text) == [5, 5, 5, 5]


def test_an_answer_in_a_conversation_begins_its_own_verse(decoder: Decoder, tokenizer: Tokenizer) -> None:
    own = TextGenerator(decoder, tokenizer.with_prompt_template(None, {"instructions": TURNS_TEMPLATE}))
    config = GenerationConfig(seed=1, max_new_tokens=40, form="五绝")
    asked = own.write_ids([own.tokenizer.for_conversations.encode_prompt("题一首诗")], config)[0]
    assert line_lengths(asked.text) == [5, 5, 5, 5]
    continued = own.write(["白日依山尽，"], config)[0]
    assert line_lengths("白日依山尽，" + continued.text) == [5, 5, 5, 5]


def test_what_does_not_fit_is_refused_before_it_is_begun(generator: TextGenerator) -> None:
    with pytest.raises(ValueError, match=r"^form 五绝 .*a mark belongs where '黄' stands"):
        generator("白日依山尽黄河", form="五绝")
    with pytest.raises(ConfigError, match=r"form \('五言'\) must be one of 五绝, 七绝"):
        generator("春", form="五言")
    with pytest.raises(ConfigError, match="tones are kept in a form of verse: give form too"):
        generator("春", tones=True)
    with pytest.raises(ConfigError, match="tones must be true or false, not 1"):
        generator("春", form="五绝", tones=1)
    config = GenerationConfig(form="五绝")
    with pytest.raises(ValueError, match=r"^prompts: generation\.form 五绝 .*'黄'"):
        require_room("prompts", ["春", "白日依山尽黄河"], generator.tokenizer, 96, config)


def test_fewer_tokens_than_the_form_takes_are_refused_with_the_number_to_give(generator: TextGenerator) -> None:
    said = "takes 65 tokens or more from here to its end, and 64 may be written: give max_new_tokens=65$"
    with pytest.raises(ValueError, match=f"^form 七律 {said}"):
        generator("", form="七律", max_new_tokens=64)
    with pytest.raises(ValueError, match=f"^form 七律 {said}"):
        generator.stream("", form="七律", max_new_tokens=64)
    assert generator("", form="七律", max_new_tokens=65, seed=1)["text"].endswith(("。", "！", "？", "；"))
    told = RowGenerator(generator.decoder, generator.tokenizer).map(["", "春"], form="五绝", max_new_tokens=24, seed=1)
    found = list(told)
    assert "is empty" in found[0]["error"]
    assert found[1]["stopped"]


def test_a_model_that_answers_by_a_template_is_refused_at_once(decoder: Decoder, tokenizer: Tokenizer) -> None:
    own = tokenizer.with_prompt_template("题：{src_txt}\n")
    config = GenerationConfig(form="七律", max_new_tokens=64)
    with pytest.raises(ValueError, match=r"^generation\.form 七律 .*give generation\.max_new_tokens=65$"):
        require_room("prompts", [], own, 96, config)
    with pytest.raises(ValueError, match="^form 七律 takes 65 tokens"):
        RowGenerator(decoder, own).map(["春"], form="七律", max_new_tokens=64)
    left = decoder.config.max_position_embeddings - len(own.encode_prompt("春" * 40))
    with pytest.raises(ValueError, match=f"the model has {left} positions left: shorten the prompt"):
        TextGenerator(decoder, own)("春" * 40, form="七律", max_new_tokens=65)


@pytest.mark.parametrize("kind", ["base", "megatron_tp1"])
def test_words_of_wordpiece_and_jieba_keep_a_form(kind: str) -> None:
    """With the few characters that these vocabularies have."""
    own = load_tokenizer(Path(__file__).parents[2] / "files" / "modelscope" / kind)
    generator = TextGenerator(make_decoder(make_config(own.vocab_size)), own)
    for seed in range(3):
        text = generator("天", form="五绝", seed=seed, max_new_tokens=40)["text"]
        assert line_lengths(text) == [5, 5, 5, 5]
        assert rhyming(text) == 1.0


def test_a_stream_is_refused_before_its_first_piece(generator: TextGenerator) -> None:
    with pytest.raises(ValueError, match="^form 五绝"):
        generator.stream("白日依山尽黄河", form="五绝")


def test_a_row_that_does_not_fit_is_that_rows_error(decoder: Decoder, tokenizer: Tokenizer) -> None:
    found = list(RowGenerator(decoder, tokenizer).map(["白日依山尽黄河", "春"], form="五绝", max_new_tokens=40, seed=1))
    assert found[0]["text"] is None
    assert "a mark belongs where '黄' stands" in found[0]["error"]
    assert regular(found[1]["text"]) == 1.0


def test_nothing_is_masked_where_no_row_asks(
    decoder: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a mask was made")

    monkeypatch.setattr(torch.Tensor, "masked_fill", refuse)
    TextGenerator(decoder, tokenizer)("春", max_new_tokens=4, seed=1)
    with pytest.raises(AssertionError, match="a mask was made"):
        TextGenerator(decoder, tokenizer)("春", max_new_tokens=40, seed=1, form="五绝")


def test_unknown_characters_of_a_prompt_count(poems: dict[str, list[str]]) -> None:
    base = load_tokenizer(Path(__file__).parents[2] / "files" / "modelscope" / "base")
    ids = base.encode_prompt("白龘")
    found = (
        constraint_of(base.with_prompt_template(None), ids, GenerationConfig(form="五绝")) if han_only("龘") else None
    )
    assert found
    assert found.place.index == 2
