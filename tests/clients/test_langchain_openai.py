"""LangChain's OpenAI models, text and chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.server_tools import RealServer, real_server

langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with real_server(tmp_path_factory.mktemp("server"), tokenizer.with_prompt_template("问：{src_txt}\n")) as running:
        yield running


def options(server: RealServer) -> dict[str, Any]:
    sampling = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
    return {"base_url": f"{server.url}/v1", "api_key": server.key, "model": "poet", "max_retries": 0, **sampling}


def test_text(server: RealServer) -> None:
    model = langchain.OpenAI(**options(server))
    expected = server.answer("春眠", max_new_tokens=12, temperature=0.8, seed=3)
    assert model.invoke("春眠") == expected
    assert "".join(model.stream("春眠")) == expected
    assert model.batch(["春眠", "春眠"]) == [expected] * 2


def test_chat(server: RealServer) -> None:
    model = langchain.ChatOpenAI(**options(server))
    expected = server.answer("用五言\n春眠", max_new_tokens=12, temperature=0.8, seed=3)
    conversation = [("system", "用五言"), ("user", "春眠")]
    answer = model.invoke(conversation)
    assert answer.content == expected
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in model.stream(conversation)) == expected
    assert model.invoke([*conversation, answer, ("user", "再来")]).content
