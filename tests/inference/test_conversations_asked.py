"""A conversation is the same ids whichever way it is asked, and they are those that training has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modules.checkpoint.formats import write
from modules.checkpoint.weights import StoredModel, stored
from modules.config.generation import GenerationConfig, LimitsConfig
from modules.data.conversations.message_rows import Conversation
from modules.data.conversations.turn_documents import encode_conversations
from modules.data.rows import load_rows
from modules.inference.prediction.answering import prompt_of
from modules.inference.prediction.row_generator import RowGenerator
from modules.inference.server.protocols.chat import parse_chat, with_conversation
from modules.inference.text_generator import TextGenerator
from modules.model.decoder import Decoder
from modules.tokenizer.prompt_template import (
    TURNS_TEMPLATE,
    check_messages,
    encode_turns,
    fit_prompt,
    ids_of,
    read_messages,
)
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tests.helpers.models import ROOT, make_config, make_decoder

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "用五言"},
    {"role": "user", "content": "春"},
    {"role": "assistant", "content": "春眠不觉晓"},
    {"role": "user", "content": "再来 <|endoftext|>"},
]
ANSWER = {"role": "assistant", "content": "处处闻啼鸟"}


@pytest.fixture(params=["character", "bpe", "base", "of several tasks"])
def tuned(request: pytest.FixtureRequest, poems: dict[str, list[str]]) -> Tokenizer:
    if request.param == "base":
        own = load_tokenizer(ROOT / "tests" / "files" / "modelscope" / "base")
    else:
        own = train_tokenizer(poems["train"], "bpe" if request.param == "bpe" else "character", vocab_size=6000)
    if request.param == "of several tasks":  # which goes on with any other text
        return own.with_prompt_template(None, {"couplets": "{src_txt}\n", "instructions": TURNS_TEMPLATE})
    return own.with_prompt_template(TURNS_TEMPLATE)


@pytest.fixture
def generator(tuned: Tokenizer) -> RowGenerator:
    return RowGenerator(make_decoder(make_config(tuned.vocab_size)), tuned, GenerationConfig(max_new_tokens=6, seed=1))


@pytest.mark.parametrize("talk", [TALK, TALK[1:], TALK[3:], TALK[:2]])
def test_every_way_gives_the_ids_of_training(
    generator: RowGenerator, tuned: Tokenizer, talk: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = json.dumps([*talk, ANSWER], ensure_ascii=False)
    trained = tuned.for_conversations
    document = encode_conversations([row], trained, 10_000)["ids"].tolist()
    answer = [*tuned.encode(ANSWER["content"]), tuned.end_of_text_id]
    expected = document[: -len(answer)]
    assert document == expected + answer

    asked: list[list[int]] = []
    write_ids = RowGenerator.write_ids
    monkeypatch.setattr(
        RowGenerator, "write_ids", lambda self, ids, *more: (asked.extend(ids), write_ids(self, ids, *more))[1]
    )
    text = generator(talk)["text"]
    assert generator([talk, {"messages": talk}]) == [{"text": text}] * 2
    assert [found["text"] for found in generator.map([talk, {"messages": talk}, {"messages": [*talk, ANSWER]}])] == [
        text
    ] * 3
    assert "".join(generator.stream(talk)) == text
    assert asked == [expected] * 6
    assert prompt_of(generator, Conversation([*talk, ANSWER]), "messages", generator.defaults) == (expected, "")
    request, messages = parse_chat({"messages": talk}, "moyun", LimitsConfig())
    assert with_conversation(request, messages, tuned, 1000, 1000).prompts == [expected]
    assert fit_prompt(check_messages(talk), trained, 1000) == (expected, False)
    assert generator(talk, return_full_text=True)["text"] == "".join(m.text for m in read_messages(talk)) + text


def test_a_column_of_its_own_is_the_system_message(generator: RowGenerator) -> None:
    rows = [{"messages": TALK}, {"messages": TALK[1:], "system": TALK[0]["content"]}, {"messages": TALK, "system": "x"}]
    whole, beside, twice = generator.map(rows)
    assert beside == whole
    assert whole["text"]
    assert "has a system message, and another in the column 'system'" in twice["error"]


def test_rows_with_more_columns_are_asked_all_of_the_conversation(generator: RowGenerator) -> None:
    """As predict asks it of a file: whatever stands beside it, checked rows' last question too."""
    talk = [*TALK, ANSWER]
    others = {"text": "用五言春春眠不觉晓", "prompt": "春", "system": None}
    rows = [{"messages": TALK}, {"messages": talk, **others}, load_rows([{"messages": talk}])[0]]
    whole, beside, checked = generator.map(rows)
    assert whole["text"]
    assert whole == beside == checked


def test_so_does_the_template_of_an_export(tuned: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    decoder = make_decoder(make_config(tuned.vocab_size))
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "huggingface", StoredModel(decoder.config, stored(decoder.state_dict())), tuned)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    talk = [*TALK[:3], {"role": "user", "content": "再来"}]
    found = auto.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
    assert found == ids_of(encode_turns(read_messages(talk), tuned.for_conversations))


def test_a_model_without_a_template_answers_as_its_chat_does(decoder: Decoder, tokenizer: Tokenizer) -> None:
    generator = RowGenerator(decoder, tokenizer, GenerationConfig(max_new_tokens=6, seed=1))
    alone = generator("用五言\n春春眠不觉晓再来 <|endoftext|>", return_full_text=False)
    assert generator(TALK) == alone
    assert next(generator.map([TALK]))["text"] == alone["text"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([*TALK, ANSWER], "text 0: messages end with the assistant's; the last must be a user's"),
        (TALK[:1], "text 0: messages has a system message alone; a user's must follow"),
        ([TALK[1], TALK[3]], "text 0: messages 1 has the role user and comes after user"),
        ([TALK[1], {"content": "春"}], "text 0: messages 1 has the role None"),
        (["春", [{"role": "tool", "content": "x"}]], "text 1: messages 0 has the role 'tool'"),
        ({"messages": []}, "text 0: messages must be a list of"),
        ({"messages": "春"}, "text 0: messages must be a list of"),
        ({"messages": TALK, "src_txt": "春"}, "text 0 is a dict with messages, src_txt"),
        ({"messages": TALK, "system": "春"}, 'messages, system: give the text itself or .* or {"messages": …}'),
        ([{"from": "human", "value": "春"}], "text 0 is a dict with from, value"),
    ],
)
def test_what_is_no_question_is_refused(decoder: Decoder, tokenizer: Tokenizer, given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TextGenerator(decoder, tokenizer)(given)
