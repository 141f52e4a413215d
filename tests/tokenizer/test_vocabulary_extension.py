"""A tokenizer with more tokens for text that is new to it: what it had stays."""

from __future__ import annotations

import pytest

from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tests.helpers.models import ROOT

VERSE = ["白日依山尽，黄河入海流。", "春眠不觉晓，处处闻啼鸟。"] * 5
PROSE = ["人工智能的数据，数据的安全。", "人工智能不是数据。ab"] * 20


@pytest.fixture(scope="module")
def verse() -> Tokenizer:
    return train_tokenizer(VERSE)


def test_old_text_keeps_its_ids_and_new_text_takes_fewer(verse: Tokenizer) -> None:
    longer = verse.extended(PROSE, new_tokens=100, min_frequency=10)
    assert longer.kind == "bpe"
    assert [longer.encode(text) for text in VERSE] == [verse.encode(text) for text in VERSE]
    assert longer.end_of_text_id == verse.end_of_text_id
    assert longer.start_ids == verse.start_ids
    for text in PROSE[:2]:
        assert longer.decode(longer.encode(text)) == text
        assert len(longer.encode(text)) < len(text) < len(verse.encode(text))
    assert "人工智能" in [longer.token(i) for i in range(verse.vocab_size, longer.vocab_size)]


def test_characters_come_before_merges_and_the_limit_holds(verse: Tokenizer) -> None:
    lacking = {character for text in PROSE for character in text} - {c for text in VERSE for c in text}
    for limit in (3, len(lacking), len(lacking) + 2):
        longer = verse.extended(PROSE, limit, 1)
        new = [longer.token(i) for i in range(verse.vocab_size, longer.vocab_size)]
        assert len(new) == limit
        assert {token for token in new if len(token) == 1} <= lacking
        assert sum(len(token) > 1 for token in new) == max(0, limit - len(lacking))
    first = verse.extended(PROSE, 1, 1)
    assert first.token(verse.vocab_size) == "据"  # 60 times, as 数, and of the lower code point


def test_what_is_rare_is_left_out_and_the_order_of_texts_changes_nothing(verse: Tokenizer) -> None:
    texts = [*PROSE, "龘"]
    one, other = (verse.extended(each, 100, 2) for each in (texts, texts[::-1]))
    assert one.fingerprint == other.fingerprint
    assert "龘" not in one.token_bytes.values()
    assert "龘".encode() not in one.token_bytes.values()
    assert one.decode(one.encode("龘")) == "龘"


def test_the_merges_that_it_has_go_first() -> None:
    first = train_tokenizer(PROSE, "bpe", 600)
    second = first.extended(["数据库的数据库"] * 50, 20, 10)
    assert second.encode(PROSE[0]) == first.encode(PROSE[0])
    assert len(second.encode("数据库")) < len(first.encode("数据库"))
    assert second.vocab_size <= first.vocab_size + 20


def test_templates_stay_and_a_cut_of_other_lengths_goes(verse: Tokenizer) -> None:
    asked = verse.with_prompt_template("{src_txt}\n", {"translate": "{src_txt}今译："}).with_source_limit(20)
    longer = asked.extended(PROSE, 5, 2)
    assert (longer.prompt_template, longer.task_templates) == (asked.prompt_template, asked.task_templates)
    assert longer.source_limit is None


def test_other_kinds_and_texts_without_anything_new_are_refused(verse: Tokenizer) -> None:
    with pytest.raises(ValueError, match="a bert tokenizer can't be extended; character and bpe can"):
        load_tokenizer(ROOT / "tests" / "files" / "modelscope" / "base").extended(PROSE, 5, 2)
    with pytest.raises(ValueError, match="hold nothing new that occurs 1000 times"):
        verse.extended(PROSE, 5, 1000)
