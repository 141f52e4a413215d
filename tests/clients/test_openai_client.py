"""OpenAI's Python client: completions, chat and streams, with its own objects and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.server_tools import RealServer, real_server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with real_server(tmp_path_factory.mktemp("server"), tokenizer.with_prompt_template("问：{src_txt}\n")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RealServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)


OPTIONS: dict[str, Any] = {"model": "poet", "max_tokens": 12, "temperature": 0.8, "seed": 3}
QUESTION: list[Any] = [{"role": "user", "content": "春眠"}]


def test_completions(server: RealServer, client: openai.OpenAI) -> None:
    expected = server.answer("春眠", max_new_tokens=12, temperature=0.8, seed=3)
    assert client.completions.create(prompt="春眠", **OPTIONS).choices[0].text == expected
    ids = server.generator.tokenizer.encode_prompt("春眠")
    assert client.completions.create(prompt=ids, **OPTIONS).choices[0].text == expected
    pieces = client.completions.create(prompt="春眠", stream=True, **OPTIONS)
    assert "".join(chunk.choices[0].text for chunk in pieces) == expected


def test_chat(server: RealServer, client: openai.OpenAI) -> None:
    expected = server.answer("春眠", max_new_tokens=12, temperature=0.8, seed=3)
    answer = client.chat.completions.create(messages=QUESTION, **OPTIONS)
    assert answer.choices[0].message.content == expected
    assert answer.usage is not None
    stream = client.chat.completions.create(
        messages=QUESTION, stream=True, stream_options={"include_usage": True}, **OPTIONS
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason
    assert last.usage == answer.usage


def test_log_probabilities_and_several_texts(server: RealServer, client: openai.OpenAI) -> None:
    generator = server.generator
    ids = generator.tokenizer.encode_prompt("春眠")
    (scores,) = generator.score_ids([ids])
    told = client.completions.create(model="poet", prompt="春眠", echo=True, max_tokens=0, logprobs=3).choices[0]
    assert told.logprobs is not None
    assert told.logprobs.token_logprobs is not None
    before, after = generator.tokenizer.prompt_parts  # of which nothing is told
    own = [score.logprob for score in scores[len(before) : len(ids) - len(after)]]
    assert len(own) >= 2
    assert told.logprobs.token_logprobs == pytest.approx(own, abs=1e-4)
    answer = client.chat.completions.create(messages=QUESTION, logprobs=True, top_logprobs=7, n=2, **OPTIONS)
    for number, choice in enumerate(answer.choices):
        expected = server.answer("春眠", max_new_tokens=12, temperature=0.8, seed=3 + number)
        assert choice.message.content == expected
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert (
            b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content)
            .decode(errors="replace")
            .startswith(expected)
        )
        assert {len(entry.top_logprobs) for entry in choice.logprobs.content} == {7}


def test_its_helper_for_streams(server: RealServer, client: openai.OpenAI) -> None:
    text = server.answer("春眠", max_new_tokens=12, temperature=0.8, seed=3)
    with client.chat.completions.stream(messages=QUESTION, stop=text[5], **OPTIONS) as stream:
        final = stream.get_final_completion()  # it raises an error for an answer that max_tokens ended
    assert final.choices[0].message.content == text[: text.index(text[5])]


def test_many_at_once(server: RealServer) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
            calls = [client.chat.completions.create(messages=QUESTION, **OPTIONS | {"seed": n}) for n in range(40)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

    expected = [server.answer("春眠", max_new_tokens=12, temperature=0.8, seed=n) for n in range(40)]
    assert asyncio.run(ask()) == expected


def test_its_own_errors(server: RealServer, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tools isn't done here") as caught:
        client.chat.completions.create(
            messages=QUESTION, tools=[{"type": "function", "function": {"name": "f"}}], **OPTIONS
        )
    assert caught.value.param == "tools"
    with pytest.raises(openai.AuthenticationError, match="this API key isn't the server's"):
        client.with_options(api_key="other").models.list()
    with pytest.raises(openai.NotFoundError, match="'poet' is"):
        client.chat.completions.create(messages=QUESTION, model="gpt-4o")
