"""What a tokenizer loses of a prompt is said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from modules.inference.text_generator import TextGenerator
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.helpers.models import make_config, make_decoder

SAID = "the model doesn't see all of the prompt: its tokenizer loses "


@pytest.fixture
def bert(tmp_path: Path) -> Tokenizer:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"春眠不觉"]), "utf-8")
    return load_tokenizer(tmp_path)


def test_lost_characters_of_a_prompt_are_named(
    bert: Tokenizer, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    generator = TextGenerator(make_decoder(make_config(bert.vocab_size)), bert)
    with caplog.at_level(logging.WARNING):
        generator("春眠\n不觉😀", max_new_tokens=1)
        list(generator.stream("春😀", max_new_tokens=1))
        generator("春眠", max_new_tokens=1)
        lossless = TextGenerator(make_decoder(make_config(tokenizer.vocab_size)), tokenizer)
        lossless("春眠\n不觉😀", max_new_tokens=1)
    assert caplog.messages == [f"{SAID}'\\n', '😀'", f"{SAID}'😀'"]


def test_a_stop_text_that_is_lost_is_named_once(bert: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    generator = TextGenerator(make_decoder(make_config(bert.vocab_size)), bert)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            generator("春眠", max_new_tokens=1, stop=["眠", "😀"])
    (said,) = caplog.messages
    assert said.startswith("generation.stop: this model's tokenizer loses part of '😀'")
