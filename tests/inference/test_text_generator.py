"""What a generator takes for a text: a string, or a dict that holds one under a known name; nothing else in silence."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from modules.config.generation import GenerationConfig
from modules.inference.text_generator import TextGenerator
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def generator(decoder: Decoder, tokenizer: Tokenizer) -> TextGenerator:
    return TextGenerator(decoder, tokenizer, GenerationConfig(max_new_tokens=4, temperature=0))


@pytest.mark.parametrize("given", [{"text": "春风"}, {"src_txt": "春风"}, {"src_txt": "春风", "tgt_txt": "秋月"}])
def test_a_dict_stands_for_the_text_in_it(generator: TextGenerator, given: dict[str, str]) -> None:
    expected = generator("春风")
    assert expected["text"].startswith("春风")
    assert generator(given) == expected
    assert generator([given, "白日"]) == [expected, generator("白日")]
    assert "".join(generator.stream(given)) == expected["text"].removeprefix("春风")


@pytest.mark.parametrize(
    "kind", [tuple, np.array, pd.Series, iter, lambda texts: datasets.Dataset.from_dict({"text": texts})]
)
def test_many_texts_may_come_in_any_list(generator: TextGenerator, kind: Any) -> None:
    assert generator(kind(["春风", "白日"])) == [generator("春风"), generator("白日")]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": "春"}, r'text 0 is a dict with prompt: give the text itself or \{"text": …\} or \{"src_txt": …\}'),
        ({"text": "春", "src_txt": "秋"}, r"text 0 is a dict with text, src_txt"),
        ({"text": "春", "max_length": 5}, r"with text, max_length: .* arguments beside it, e\.g\. max_new_tokens=64"),
        ({}, r"text 0 is a dict with nothing"),
        (["春", {"content": "秋"}], r"text 1 is a dict with content"),
        ({"text": ["春", "秋"]}, r"text 0 must be a text, not \['春', '秋'\]"),
        ({"text": None}, r"text 0 must be a text, not None"),
        (None, r"a list of texts is wanted .*, not None"),
        (5, r"a list of texts is wanted .*, not 5"),
        ("春".encode(), r"a list of texts is wanted"),
        (pd.DataFrame({"text": ["春"]}), r"of a table one of its columns"),
    ],
)
def test_anything_else_is_refused(generator: TextGenerator, given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        generator(given)


def test_a_text_in_place_of_a_list_is_not_taken_apart(generator: TextGenerator) -> None:
    for given in ("春风", {"text": "春风"}):
        with pytest.raises(ValueError, match="a list of texts is wanted"):
            generator.write(given)  # type: ignore[arg-type]
