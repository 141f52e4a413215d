"""What is continued at each validation where no prompts are named."""

from __future__ import annotations

import datasets
import pytest

from modules.config.base import POEMS
from modules.config.generation import GenerationConfig
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from modules.training.planning.sample_prompts import usual_prompts
from tests.helpers.models import ROOT

PLAIN = datasets.Dataset.from_dict(
    {
        "src_txt": [
            "白日依山尽，黄河入海流。",
            "白日依山尽，再来一遍。",
            "\n没有标点的一行很长的文字",
            "春眠。",
            "花",
        ]
    }
)
PAIRS = datasets.Dataset.from_dict({"src_txt": ["问一", "问" * 90, "问二", "问三", "问四"], "tgt_txt": ["答"] * 5})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["白日依山尽，黄河入海流。"])


def prompts(splits: dict[str, datasets.Dataset], tokenizers: dict[str, Tokenizer], saved: Tokenizer) -> list[str]:
    return usual_prompts(splits, tokenizers, saved, 64, GenerationConfig())


def test_plain_text_is_begun_as_three_of_its_rows_are(tokenizer: Tokenizer) -> None:
    found = prompts({"validation": PLAIN}, {"": tokenizer}, tokenizer)
    assert found == ["白日依山尽，", "没有标点的一行很", "春眠。"]


def test_rows_with_answers_are_asked_and_one_without_room_is_passed_over(tokenizer: Tokenizer) -> None:
    asked = tokenizer.with_prompt_template("{src_txt}\n")
    assert prompts({"validation": PAIRS}, {"": asked}, asked) == ["问一", "问二", "问三"]
    few = GenerationConfig(max_new_tokens=64)  # and the long one has 272
    for positions, found in ((330, ["问一", "问二", "问三"]), (340, ["问一", "问" * 90, "问二"])):
        assert usual_prompts({"validation": PAIRS}, {"": asked}, asked, positions, few) == found


def test_of_a_mixture_it_is_a_source_that_is_asked_as_the_model_is(tokenizer: Tokenizer) -> None:
    splits = {"validation/pairs": PAIRS, "validation/verse": PLAIN}
    asked = tokenizer.with_prompt_template("{src_txt}\n")
    tokenizers = {"pairs": asked, "verse": tokenizer}
    assert prompts(splits, tokenizers, tokenizer)[0] == "白日依山尽，"
    assert prompts(splits, tokenizers, asked)[0] == "问一"


def test_rows_that_cannot_keep_the_form_of_verse_are_passed_over() -> None:
    form, verse = GenerationConfig(form="五绝"), load_tokenizer(ROOT / POEMS)
    found = usual_prompts({"validation": PLAIN}, {"": verse}, verse, 64, form)
    assert "白日依山尽，" in found
    assert "没有标点的一行很" not in found
