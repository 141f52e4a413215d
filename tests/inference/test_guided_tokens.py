"""JSON and regular expressions in tokens: whatever a model would write, its text keeps what it is held to."""

from __future__ import annotations

import gc
import json
import logging
import re
import weakref
from pathlib import Path
from typing import Any

import pytest

from modules.config.generation import GenerationConfig
from modules.config.guided import grammar
from modules.inference import guided_tokens
from modules.inference.guided_tokens import MADE, guided_constraint
from modules.inference.prediction.row_generator import RowGenerator
from modules.inference.row_constraints import require_constraints
from modules.inference.text_generator import TextGenerator
from modules.model import sampling
from modules.model.decoder import Decoder
from modules.model.decoding.decode_graph import FREE, GraphBatch
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tests.helpers.models import ROOT, make_config, make_decoder

POEM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 6},
        "朝代": {"enum": ["唐", "宋"]},
        "lines": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[一-龥]{5}$"},
            "minItems": 2,
            "maxItems": 2,
        },
        "year": {"type": "integer", "minimum": 618, "maximum": 1279},
    },
    "required": ["title", "朝代", "lines", "year"],
    "additionalProperties": False,
}
LINES = "[一-龥]{5}，[一-龥]{5}。"


def byte_level(folder: Path) -> Tokenizer:
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    corpus = ["白日依山尽，黄河入海流。欲穷千里目，更上一层楼。" * 2, '{"title": "the quick brown fox"}\n'] * 3
    bpe.train_from_iterator(corpus, vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(folder))
    (folder / "config.json").write_text('{"eos_token_id": 0, "bos_token_id": 0}')
    return load_tokenizer(folder)


@pytest.fixture(params=["character", "bpe", "byte_level_bpe"])
def generator(request: pytest.FixtureRequest, poems: dict[str, list[str]], tmp_path: Path) -> TextGenerator:
    """A decoder of random weights, which by itself writes no JSON."""
    kind = request.param
    own = byte_level(tmp_path) if kind == "byte_level_bpe" else train_tokenizer(poems["train"], kind, vocab_size=5000)
    return TextGenerator(make_decoder(make_config(own.vocab_size, max_position_embeddings=400)), own)


def require_poem(text: str) -> None:
    found = json.loads(text)
    assert list(found) == list(POEM["properties"])
    assert len(found["title"]) <= 6
    assert found["朝代"] in ("唐", "宋")
    assert len(found["lines"]) == 2
    assert all(re.fullmatch("[一-龥]{5}", line) for line in found["lines"])
    assert 618 <= found["year"] <= 1279


def test_whatever_is_sampled_keeps_the_schema_and_ends_by_itself(generator: TextGenerator) -> None:
    config = GenerationConfig.parse({"seed": 3, "max_new_tokens": 380, "json_schema": POEM})
    for row in generator.write(["", "春", "白日依山尽，"], config):
        assert row.stopped
        require_poem(row.text)


def test_whatever_is_sampled_matches_the_expression_as_a_whole(generator: TextGenerator) -> None:
    for parameters in (
        {"temperature": 0},
        {"seed": 1},
        {"seed": 2, "top_k": 3},
        {"seed": 2, "repetition_penalty": 2.0},
    ):
        text = generator("春", regex=LINES, max_new_tokens=60, return_full_text=False, **parameters)["text"]
        assert re.fullmatch(LINES, text)
    assert generator("春", regex="甲\n?乙{3}", max_new_tokens=60, seed=1)["text"] in ("春甲乙乙乙", "春甲\n乙乙乙")


def test_any_object_is_one(generator: TextGenerator) -> None:
    """Blanks between the signs don't go on for ever."""
    for seed in range(2):
        row = generator.write(
            ["春"], GenerationConfig(seed=seed, max_new_tokens=120, json_schema='{"type": "object"}')
        )[0]
        assert "  " not in re.sub(r'"(?:\\.|[^"\\])*"', '""', row.text)
        if row.stopped:
            assert isinstance(json.loads(row.text), dict)


def test_special_tokens_never_come_within(generator: TextGenerator) -> None:
    """However much they are wanted; nor do ids that stand for no text."""
    tokenizer = generator.tokenizer
    found = guided_constraint(tokenizer, "regex", ".{20}").allowed
    silent = [token for token in range(tokenizer.vocab_size) if not tokenizer.token_bytes.get(token)]
    assert silent
    assert not found[silent].any()
    bias = {str(tokenizer.end_of_text_id): 100.0}
    text = generator("春", regex=".{20}", logit_bias=bias, max_new_tokens=90, return_full_text=False)["text"]
    assert len(text) == 20


def test_a_row_is_what_it_is_alone_and_as_a_stream(generator: TextGenerator) -> None:
    parameters: dict[str, Any] = {"seed": 3, "max_new_tokens": 380, "json_schema": POEM, "frequency_penalty": 0.5}
    texts = ["春", "白日依山尽，", "床前"]
    together = generator(texts, **parameters)
    assert together == [generator(text, **parameters) for text in texts]
    assert "春" + "".join(generator.stream("春", **parameters)) == together[0]["text"]


def test_beam_search_keeps_it_too(generator: TextGenerator) -> None:
    row = generator.write(["春"], GenerationConfig(num_beams=3, max_new_tokens=60, regex=LINES))[0]
    assert row.stopped
    assert re.fullmatch(LINES, row.text)


def test_captured_steps_write_the_same(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GenerationConfig.parse({"seed": 2, "max_new_tokens": 380, "json_schema": POEM})
    expected = generator.write(["春", "夏"], config)
    monkeypatch.setattr(sampling, "open_batch", GraphBatch)
    assert generator.write(["春", "夏"], config) == expected
    FREE.clear()


def test_what_can_be_said_in_one_way_alone_is_said_in_the_models_own_tokens(
    poems: dict[str, list[str]], tmp_path: Path
) -> None:
    for own in (byte_level(tmp_path), train_tokenizer(poems["train"], "bpe", vocab_size=6000)):
        for text in ('{"title": "the quick', poems["train"][0][:12]):
            constraint, written = guided_constraint(own, "regex", re.escape(text)), []
            while not constraint.allowed[own.end_of_text_id]:
                written.append(int(constraint.allowed.nonzero()[0][0]))
                constraint = constraint.after(written[-1])
            assert written == own.encode(text)


def test_a_text_that_is_cut_is_told_of_once(generator: TextGenerator, caplog: pytest.LogCaptureFixture) -> None:
    config = GenerationConfig.parse({"seed": 1, "max_new_tokens": 9, "json_schema": POEM})
    with caplog.at_level(logging.WARNING, "moyun.generation"):
        assert not any(row.stopped for row in generator.write(["春", "夏"], config))
        generator.write(["秋"], config)
    assert [record.message for record in caplog.records] == [
        "a text was cut before it came to its end, and may not keep its json_schema: max_new_tokens is 9, and the "
        "model has 400 positions for prompt and answer"
    ]


def test_what_gets_too_complex_is_broken_off_and_said(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grammar, "LIMITS", {"step_max_items": 40, "step_lexer_fuel": 200})
    MADE.pop(generator.tokenizer, None)
    schema = json.dumps({"type": "array", "items": {"enum": [f"甲{n}" for n in range(300)]}, "minItems": 9})
    with caplog.at_level(logging.WARNING, "moyun.generation"):
        row, other = generator.write_ids(
            generator.encode(["春", "夏"]), GenerationConfig(seed=1, max_new_tokens=90, json_schema=schema)
        )
    assert (row.stopped, other.stopped) == (False, False)
    assert "a text was broken off: its json_schema got too complex for llguidance" in caplog.records[0].message


@pytest.mark.parametrize("kind", ["base", "megatron_tp1"])
def test_a_tokenizer_that_cannot_write_every_text_is_refused_by_name(kind: str) -> None:
    tokenizer = load_tokenizer(ROOT / "tests" / "files" / "modelscope" / kind)
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    name = {"base": "BERT's WordPiece", "megatron_tp1": "jieba's words"}[kind]
    said = rf"regex can't be kept with this model's tokenizer \({name}\)"
    with pytest.raises(ValueError, match=f"^{said}"):
        TextGenerator(decoder, tokenizer)("春", regex="春")
    with pytest.raises(ValueError, match=f"^{said}"):
        RowGenerator(decoder, tokenizer).map(["春"], regex="春")
    with pytest.raises(ValueError, match=rf"^generation\.{said}"):
        require_constraints([], tokenizer, GenerationConfig(regex="春"))


def test_a_schema_is_compiled_once_and_a_tokenizer_isnt_kept_for_it(
    decoder: Decoder, poems: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    compile_it = guided_tokens.compiled
    monkeypatch.setattr(guided_tokens, "compiled", lambda *each: (asked.append(each[2]), compile_it(*each))[1])
    own = train_tokenizer(poems["train"])
    generator = TextGenerator(decoder, own)
    for _ in range(3):
        generator(["春", "夏"], regex="春{2}", max_new_tokens=4)
    assert asked == ["春{2}"]
    gone = weakref.ref(own)
    del generator, own
    gc.collect()
    assert gone() is None
