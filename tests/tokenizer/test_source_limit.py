"""Prompts are cut as the rows of training were: the tokenizer keeps how much of a source was left there."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from modules.data.encoding import encode_rows
from modules.tokenizer.prompt_template import Message, fit_prompt
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, say_cut, train_tokenizer


@pytest.fixture(scope="module")
def whole() -> Tokenizer:
    return train_tokenizer(["春夏秋冬"], min_frequency=1).with_prompt_template("问{src_txt}答")


def test_what_was_too_long_in_training_is_too_long_afterwards(
    whole: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    say_cut.cache_clear()  # another test may have been told
    cut = whole.with_source_limit(3)
    short = whole.encode_prompt("夏" * 3)
    assert cut.encode_prompt("夏" * 3) == cut.encode_prompt("夏" * 9) == short
    assert whole.encode_prompt("夏" * 9) != short
    talk = [Message("user", "夏" * 9)]
    assert fit_prompt("夏" * 9, cut, 60) == fit_prompt(talk, cut, 60) == (short, True)
    assert fit_prompt("夏" * 3, cut, 60) == (short, False)
    assert "prompts of more than 3 tokens of text are cut" in caplog.text


def test_likelihood_sees_the_same_prompt_and_the_whole_answer(whole: Tokenizer) -> None:
    rows = datasets.Dataset.from_dict({"src_txt": ["夏" * 9, "夏" * 2], "tgt_txt": ["秋" * 20, "冬"]})
    found = encode_rows(rows, whole.with_source_limit(3), 60)
    assert found.ids[: found.prompt_lengths[0]].tolist() == whole.encode_prompt("夏" * 3)
    assert found.trained_tokens.tolist() == [21, 2]
    assert (found.rows_cut, found.tokens_cut, found.characters.tolist()) == (1, 6, [20, 1])


def test_it_travels_with_the_tokenizer_but_not_to_another_template(whole: Tokenizer, tmp_path: Path) -> None:
    whole.with_source_limit(3).save(tmp_path)
    found = load_tokenizer(tmp_path)
    assert (found.source_limit, found.with_prompt_template("问{src_txt}答").source_limit) == (3, 3)
    assert found.with_prompt_template("{src_txt}：").source_limit is None
    assert found.fingerprint != whole.fingerprint == found.with_source_limit(None).fingerprint


@pytest.mark.parametrize("limit", [0, -1, "3", 2.5, True, [3]])
def test_a_limit_that_is_no_number_of_tokens_is_refused(whole: Tokenizer, tmp_path: Path, limit: object) -> None:
    whole.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source_limit": limit}))
    with pytest.raises(ValueError, match="source_limit .* must be a number of tokens"):
        load_tokenizer(tmp_path)
