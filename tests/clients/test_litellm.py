"""LiteLLM, which speaks OpenAI's protocol to a server of any name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.server_tools import RealServer, real_server

litellm = pytest.importorskip("litellm", reason="litellm is not installed")

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with real_server(tmp_path_factory.mktemp("server"), tokenizer.with_prompt_template("问：{src_txt}\n")) as running:
        yield running


def options(server: RealServer) -> dict[str, Any]:
    sampling = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
    return {"api_base": f"{server.url}/v1", "api_key": server.key, "num_retries": 0, **sampling}


def test_chat(server: RealServer) -> None:
    expected = server.answer("春眠", max_new_tokens=12, temperature=0.8, seed=3)
    call = {"model": "openai/poet", "messages": [{"role": "user", "content": "春眠"}], **options(server)}
    assert litellm.completion(**call).choices[0].message.content == expected
    stream = litellm.completion(stream=True, **call)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected


def test_text(server: RealServer) -> None:
    answer = litellm.text_completion(model="text-completion-openai/poet", prompt="春眠", **options(server))
    assert answer.choices[0].text == server.answer("春眠", max_new_tokens=12, temperature=0.8, seed=3)


def test_a_wrong_key(server: RealServer) -> None:
    with pytest.raises(litellm.AuthenticationError, match="this API key isn't the server's"):
        litellm.completion(
            model="openai/poet", messages=[{"role": "user", "content": "x"}], **options(server) | {"api_key": "x"}
        )
