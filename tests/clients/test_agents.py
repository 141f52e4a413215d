"""OpenAI's Agents SDK, and Pydantic AI: an agent without tools, at once and as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.server_tools import RealServer, real_server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with real_server(tmp_path_factory.mktemp("server"), tokenizer.with_prompt_template("问：{src_txt}\n")) as running:
        yield running


@pytest.fixture
def expected(server: RealServer) -> str:
    return server.answer("春眠", max_new_tokens=12, temperature=0.8, seed=3)


def test_openais_agents(server: RealServer, expected: str) -> None:
    agents = pytest.importorskip("agents", reason="openai-agents is not installed")
    agents.set_tracing_disabled(True)  # it would go to OpenAI

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
            model = agents.OpenAIChatCompletionsModel(model="poet", openai_client=client)
            settings = agents.ModelSettings(max_tokens=12, temperature=0.8, extra_body={"seed": 3})
            poet = agents.Agent(name="poet", model=model, model_settings=settings)
            whole = await agents.Runner.run(poet, "春眠")
            stream = agents.Runner.run_streamed(poet, "春眠")
            async for _ in stream.stream_events():
                pass
            return [whole.final_output, stream.final_output]

    assert asyncio.run(ask()) == [expected] * 2


def test_pydantic_ai(server: RealServer, expected: str) -> None:
    pydantic_ai = pytest.importorskip("pydantic_ai", reason="pydantic-ai is not installed")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{server.url}/v1", api_key=server.key)
    settings = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
    poet = pydantic_ai.Agent(OpenAIChatModel("poet", provider=provider), model_settings=settings)

    async def ask() -> list[str]:
        whole = await poet.run("春眠")
        async with poet.run_stream("春眠") as stream:
            return [whole.output, await stream.get_output()]

    assert asyncio.run(ask()) == [expected] * 2
