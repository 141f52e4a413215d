"""Chat completions over real HTTP: what OpenAI's client gets, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from modules.config.generation import GenerationConfig
from modules.tokenizer.prompt_template import encode_turns, read_messages
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder
from tests.helpers.server_tools import Served, served, until

pytestmark = pytest.mark.server

TEMPLATE = "问：{src_txt}\n"
MESSAGES: list[Any] = [
    {"role": "system", "content": "用五言"},
    {"role": "user", "content": "春"},
    {"role": "assistant", "content": "春眠不觉晓"},
    {"role": "user", "content": [{"type": "text", "text": "山"}, {"type": "text", "text": "水"}]},
]
SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "seed": 4}


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Served]:
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    limits = {"max_new_tokens": 30, "prompt_tokens": 60, "request_rows": 4}
    with served(decoder, tokenizer.with_prompt_template(TEMPLATE), **limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def answer_of(server: Served, messages: list[Any], **parameters: Any) -> str:
    """What the model says to a conversation without a server."""
    ids = [i for turn in encode_turns(read_messages(messages), server.generator.tokenizer) for p in turn for i in p]
    return server.generator.write_ids([ids], GenerationConfig(**parameters))[0].text


def test_openais_client_gets_the_models_answer(server: Served, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="small", messages=MESSAGES, max_completion_tokens=20, extra_body={"top_k": 50}, user="u", **SAMPLING
    )
    (choice,) = answer.choices
    assert choice.message.content == answer_of(server, MESSAGES, max_new_tokens=20, top_k=50, **SAMPLING)
    assert (choice.message.role, choice.index, answer.object) == ("assistant", 0, "chat.completion")
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    turns = encode_turns(read_messages(MESSAGES), server.generator.tokenizer)
    assert answer.usage.prompt_tokens == sum(len(part) for turn in turns for part in turn)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_conversation_goes_on_with_the_answer_that_the_client_got(server: Served, client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "春"}]
    first = client.chat.completions.create(model="small", messages=messages, max_tokens=6, seed=1).choices[0].message
    messages += [first, {"role": "user", "content": "再来"}]
    second = client.chat.completions.create(model="small", messages=messages, max_tokens=6, seed=1)
    said = [messages[0], {"role": "assistant", "content": first.content}, messages[2]]
    assert second.choices[0].message.content == answer_of(server, said, max_new_tokens=6, seed=1)


def test_the_stream_is_the_whole_answer_in_openais_form(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "small", "messages": MESSAGES, "max_tokens": 20, "n": 2, **SAMPLING}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options)
    *chunks, last = list(stream)
    assert {chunk.object for chunk in (*chunks, last)} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in (*chunks, last)}) == 1
    assert ([c.usage for c in chunks], last.choices, last.usage) == ([None] * len(chunks), [], whole.usage)
    for expected in whole.choices:
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == expected.index]
        assert (own[0].delta.role, own[0].delta.content) == ("assistant", "")
        assert "".join(choice.delta.content or "" for choice in own) == expected.message.content
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + [expected.finish_reason]
        assert own[-1].delta.content is None


def test_choices_are_the_texts_of_the_next_seeds(server: Served, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="small", messages=MESSAGES, n=3, max_tokens=20, seed=7)
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [answer_of(server, MESSAGES, max_new_tokens=20, seed=seed) for seed in (7, 8, 9)]
    assert len(set(texts)) == 3


def test_log_probabilities_are_those_of_completions(server: Served, client: openai.OpenAI) -> None:
    sampling: dict[str, Any] = {"model": "small", "max_tokens": 12, **SAMPLING}
    turns = encode_turns(read_messages(MESSAGES), server.generator.tokenizer)
    ids = [token for turn in turns for part in turn for token in part]
    expected = client.completions.create(prompt=ids, logprobs=3, **sampling).choices[0].logprobs
    asked: dict[str, Any] = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 3, **sampling}
    found = client.chat.completions.create(**asked).choices[0].logprobs
    assert expected is not None
    assert found is not None
    assert found.content
    assert [(each.token, each.logprob) for each in found.content] == list(
        zip(expected.tokens or [], expected.token_logprobs or [], strict=True)
    )
    for each, top in zip(found.content, expected.top_logprobs or [], strict=True):
        assert [(other.token, other.logprob) for other in each.top_logprobs] == list(top.items())[:3]
    text = b"".join(bytes(each.bytes or []) for each in found.content).decode(errors="replace")
    assert text == answer_of(server, MESSAGES, max_new_tokens=12, **SAMPLING)
    streamed = [
        entry
        for chunk in client.chat.completions.create(stream=True, **asked)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == found.content


def test_without_max_tokens_an_answer_ends_by_itself_or_at_the_servers_limit(server: Served) -> None:
    body = {"messages": MESSAGES[1:2], "temperature": 0}
    answer = server.post("/v1/chat/completions", body).json()
    assert answer["choices"][0]["message"]["content"] == answer_of(
        server, MESSAGES[1:2], max_new_tokens=30, temperature=0.0
    )


def test_a_model_that_continues_text_does_so_here(tokenizer: Tokenizer) -> None:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer) as server:
        messages = [{"role": "user", "content": "白日依山尽，"}]
        answer = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 9, "seed": 2}).json()
        assert answer["choices"][0]["message"]["content"] == server.alone("白日依山尽，", max_new_tokens=9, seed=2)


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": False, "store": False},
        {"modalities": ["text"], "metadata": {}, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0},
        {"logprobs": False, "top_logprobs": None, "service_tier": "auto", "parallel_tool_calls": None},
        {"max_tokens": 4, "max_completion_tokens": 4, "safety_identifier": "x", "prompt_cache_key": "y", "user": None},
    ],
)
def test_what_changes_nothing_is_taken(server: Served, body: dict[str, Any]) -> None:
    body = {"messages": MESSAGES, "max_tokens": 4, "seed": 1} | body
    expected = answer_of(server, MESSAGES, max_new_tokens=4, seed=1)
    answer = server.post("/v1/chat/completions", body)
    assert answer.json()["choices"][0]["message"]["content"] == expected


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"messages": None}, "messages", "messages must be a list of"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "messages 0 has the role 'tool'"),
        ({"messages": MESSAGES[:3]}, "messages", "messages end with the assistant's"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "half a surrogate pair"),
        ({"prompt": "春"}, "prompt", "'prompt' isn't known here; there is messages, model, max_tokens"),
        ({"tools": [{"type": "function"}]}, "tools", "tools isn't done here: leave it out, or [] (not"),
        ({"tool_choice": "required"}, "tool_choice", "tool_choice isn't done here"),
        ({"response_format": {"type": "xml"}}, "response_format", "must be {'type': 'text'}, {'type': 'json_object'}"),
        ({"modalities": ["text", "audio"]}, "modalities", "modalities isn't done here"),
        ({"store": True}, "store", "store isn't done here: leave it out, or False (not True)"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "reasoning_effort isn't done here"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "max_tokens (4) is another than"),
        ({"max_completion_tokens": 31}, "max_completion_tokens", "max_completion_tokens (31) is over 30"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "max_completion_tokens (0) must be at least 1"),
        ({"n": 5}, "n", "n (5) texts of each of 1 prompts are too many; a request may have 1 to 4 in all"),
        ({"n": 0}, "n", "n must be a whole number of at least 1, not 0"),
        ({"n": True}, "n", "n must be a whole number of at least 1, not True"),
        ({"user": 5}, "user", "user must be a text"),
        ({"logprobs": 3}, "logprobs", "logprobs must be true or false, not 3"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs must be a whole number from 0 to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs is given without logprobs: true"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    server: Served, change: dict[str, Any], field: str, message: str
) -> None:
    passes = server.pace.passes
    content = json.dumps({"messages": MESSAGES} | change)
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, field, "invalid_request_error")
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert server.pace.passes == passes


def test_a_long_conversation_is_refused_and_one_of_the_tokens_that_are_named_is_taken(server: Served) -> None:
    def talk(length: int) -> list[dict[str, str]]:
        return [MESSAGES[1], MESSAGES[2], {"role": "user", "content": "春" * length}]

    rest = sum(len(p) for turn in encode_turns(read_messages(talk(0)), server.generator.tokenizer) for p in turn)
    for length, said in (
        (61 - rest, "messages have 61 tokens, template included"),
        (99, "messages have 105 characters"),
    ):
        error = server.post("/v1/chat/completions", {"messages": talk(length)}).json()["error"]
        assert error["message"].startswith(f"{said}; this server takes up to 60 tokens")
        assert error["code"] == "context_length_exceeded"
    assert server.post("/v1/chat/completions", {"messages": talk(60 - rest), "max_tokens": 1}).status_code == 200


def test_it_is_counted_by_itself(server: Served) -> None:
    before = server.outcomes("chat").get("refused", 0)
    server.post("/v1/chat/completions", {})
    until(lambda: server.outcomes("chat").get("refused", 0) == before + 1)  # after the answer's last byte
