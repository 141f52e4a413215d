"""A conversation's prompt: the same ids as the rows that a model was tuned on."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from modules.data.encoding import encode_batch
from modules.tokenizer.prompt_template import (
    TURNS_TEMPLATE,
    Message,
    check_messages,
    encode_turns,
    fit_prompt,
    fit_turns,
    read_messages,
)
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import ROOT

TEMPLATE = "问：{src_txt}\n答："


@pytest.fixture(scope="module")
def tuned(tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer.with_prompt_template(TEMPLATE)


def said(*texts: str) -> list[dict[str, str]]:
    """A conversation of a user and an assistant in turns."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def ids_of(messages: list[dict[str, str]], tokenizer: Tokenizer) -> list[int]:
    return [token for turn in encode_turns(read_messages(messages), tokenizer) for part in turn for token in part]


def test_one_question_is_the_prompt_of_a_row(tuned: Tokenizer) -> None:
    assert ids_of(said("春眠"), tuned) == tuned.encode_prompt("春眠")


def test_a_turn_with_its_answer_is_a_row_that_was_trained_on(tuned: Tokenizer) -> None:
    row = encode_batch(["春眠"], ["不觉晓"], tuned, None, 90)
    ((prompt, answer),) = encode_turns(read_messages(said("春眠", "不觉晓")), tuned)
    assert prompt + answer == row.ids.tolist()
    assert len(prompt) == row.prompt_lengths[0]
    assert answer == [*tuned.encode("不觉晓"), tuned.end_of_text_id]


def test_later_turns_follow_without_start_ids(tuned: Tokenizer) -> None:
    first, second = encode_turns(read_messages(said("春", "山", "花")), tuned)
    assert first.prompt == tuned.encode_prompt("春")
    assert second.prompt == [*tuned.encode("问："), *tuned.encode("花"), *tuned.encode("\n答：")]
    assert second.answer == []


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_stands_before_the_first_users_text(tuned: Tokenizer, role: str) -> None:
    told = [{"role": role, "content": "用五言"}, *said("春", "山", "花")]
    assert ids_of(told, tuned) == ids_of(said("用五言\n春", "山", "花"), tuned)


def test_a_model_without_a_template_continues_the_texts_end_to_end(tokenizer: Tokenizer) -> None:
    assert ids_of(said("白日", "依山尽", "，"), tokenizer) == tokenizer.encode_prompt("白日依山尽，")


def test_a_model_that_continues_text_and_was_taught_questions_is_asked_as_it_was_taught(tokenizer: Tokenizer) -> None:
    several = tokenizer.with_prompt_template(None, {"translate": "{src_txt}今译：", "talks": TURNS_TEMPLATE})
    asking = several.for_conversations
    assert asking.prompt_template == TURNS_TEMPLATE
    assert several.prompt_template is None
    assert several.answers(asking.encode_prompt("春眠"))
    assert not several.answers(several.encode_prompt("春眠"))
    assert not several.answers([])
    assert asking.for_conversations is asking


def test_other_tasks_say_nothing_of_conversations(tokenizer: Tokenizer) -> None:
    several = tokenizer.with_prompt_template(None, {"translate": "{src_txt}今译："})
    assert several.for_conversations is several
    assert not several.answers(several.encode_prompt("春眠"))


def test_what_fits_is_the_latest_turns_and_the_system_message(tuned: Tokenizer) -> None:
    told = [{"role": "system", "content": "用五言"}, *said("春" * 20, "山" * 20, "花", "水", "日")]
    messages = check_messages(told)
    whole = ids_of(told, tuned)
    assert fit_prompt(messages, tuned, len(whole)) == (whole, False)
    latest = ids_of([told[0], *told[3:]], tuned)
    assert fit_prompt(messages, tuned, len(whole) - 1) == (latest, True)
    assert fit_prompt(messages, tuned, len(latest)) == (latest, True)
    last = ids_of([told[0], told[5]], tuned)
    assert fit_prompt(messages, tuned, len(latest) - 1) == (last, True)
    assert fit_prompt(messages, tuned, len(last) - 1) == (tuned.encode_prompt("用五言日"), True)
    assert fit_prompt("春" * 20, tuned, 25) == (tuned.encode_prompt("春" * 20, 25), True)
    with pytest.raises(ValueError, match="leaves no room for the text"):
        fit_prompt(messages, tuned, 5)


@pytest.mark.parametrize(
    ("system", "question", "kept"),
    [
        ("规" * 40, "春眠", "规" * 18 + "春眠"),
        ("规" * 40, "春" * 40, "规" * 10 + "春" * 10),
        ("规则", "春" * 40, "规则\n" + "春" * 17),
        ("规" * 15, "春" * 5, "规" * 15 + "春" * 5),
    ],
)
def test_a_long_system_message_leaves_half_of_the_room_to_the_question(
    tuned: Tokenizer, system: str, question: str, kept: str
) -> None:
    told = check_messages([{"role": "system", "content": system}, *said(question, "山")])
    overhead = sum(map(len, tuned.prompt_parts))
    assert fit_prompt(told[:2], tuned, overhead + 20) == (tuned.encode_prompt(kept), True)
    ((prompt, answer),) = fit_turns(told, tuned, overhead + 22)
    assert (prompt, answer) == (tuned.encode_prompt(kept), [*tuned.encode("山"), tuned.end_of_text_id])


def test_the_template_where_no_other_is_named_is_that_of_instructions() -> None:
    text = (ROOT / "conf" / "data" / "instructions.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["prompt_template"] == TURNS_TEMPLATE


def test_special_tokens_in_messages_are_text(tuned: Tokenizer) -> None:
    ids = ids_of(said("<|endoftext|>"), tuned)
    assert ids.count(tuned.end_of_text_id) == len(tuned.start_ids)
    assert tuned.decode(ids) == "问：<|endoftext|>\n答："


def test_content_may_come_in_parts_and_empty_keys_beside_it() -> None:
    parts = [{"type": "text", "text": "春"}, {"type": "text", "text": "眠"}]
    earlier = {
        "role": "assistant",
        "content": "山",
        "refusal": None,
        "tool_calls": [],
        "annotations": [],
        "audio": None,
    }
    given = [{"role": "user", "content": parts}, earlier, *said("花")]
    assert read_messages(given) == [Message("user", "春眠"), Message("assistant", "山"), Message("user", "花")]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages must be a list of .*, not None"),
        ("春", "messages must be a list of"),
        ([], r"messages must be a list of .*, not \[\]"),
        ({"role": "user", "content": "春"}, "messages must be a list of"),
        (["春"], "messages 0 must be {'role': …, 'content': …}, not '春'"),
        ([{"content": "春"}], "messages 0 has the role None; there is system, developer, user, assistant"),
        ([{"role": ["user"], "content": "春"}], r"messages 0 has the role \['user'\]; there is"),
        ([{"role": "tool", "content": "春"}], "messages 0 has the role 'tool'; there is"),
        ([{"role": "user"}], "messages 0 content must be a text or a list of .*, not None"),
        ([{"role": "user", "content": 5}], "messages 0 content must be a text or a list of .*, not 5"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "of the type 'image_url'"),
        ([{"role": "user", "content": ["春"]}], "messages 0 content has a part of the type '春'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages 0 content has a part whose text is None"),
        ([{"role": "user", "content": "春", "name": "李"}], "messages 0 has 'name', which isn't done here"),
        ([*said("春"), {"role": "assistant", "content": "", "tool_calls": [{}]}], "messages 1 has 'tool_calls'"),
        ([*said("春"), *said("山")], "messages 1 has the role user and comes after user, where assistant is wanted"),
        (said("春", "山")[1:], "messages 0 has the role assistant and comes first, where user or system or developer"),
        ([*said("春", "山"), {"role": "system", "content": "x"}], "messages 2 has the role system and comes after as"),
        ([{"role": "system", "content": "x"}, {"role": "developer", "content": "y"}], "messages 1 has the role dev"),
        ([{"role": "system", "content": "x"}, *said("春", "山")[1:]], "messages 1 .* after system, where user is"),
        ([{"role": "system", "content": "x"}], "a system message alone"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_named(messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_messages(messages)
    assert "\n" not in str(caught.value)
