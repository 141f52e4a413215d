"""Requests that begin like earlier ones, over HTTP: the texts are those of each alone, and less is read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder
from tests.helpers.server_tools import Served, served

pytestmark = pytest.mark.server

POEM = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。床前明月光，疑是地上霜。举头望明月，低头思故乡。"
PROMPTS = [*(POEM + own for own in ("春", "山", "", "春眠不觉晓")), POEM[:30], POEM[1:], "春"]
PARAMETERS: list[dict[str, Any]] = [
    {"temperature": 0.0, "max_new_tokens": 20},
    {"seed": 4, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3, "max_new_tokens": 24},
    {"seed": 5, "stop": ["。", "山"], "max_new_tokens": 30},
]


@pytest.fixture(params=[None, 0, 64])
def server(tokenizer: Tokenizer, request: pytest.FixtureRequest) -> Iterator[Served]:
    """With room by default, with none, and with too little for all."""
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    with served(decoder, tokenizer, batch_rows=4, queue_rows=100, prefix_tokens=request.param) as running:
        yield running


def test_texts_are_those_of_each_prompt_alone(server: Served) -> None:
    """At once and one after the other, with rows beside them that are broken off, scored, or several of one prompt."""
    asked = [(prompt, parameters) for parameters in PARAMETERS for prompt in PROMPTS]

    def ask(number: int) -> str:
        prompt, parameters = asked[number % len(asked)]
        body = parameters | {"max_tokens": parameters["max_new_tokens"], "prompt": prompt}
        del body["max_new_tokens"]
        if number % 4 == 1:
            body |= {"logprobs": 1, "echo": True}
        if number % 4 == 2:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}/v1/completions", json=body | {"max_tokens": 90}, timeout=0.001)
        text: str = server.complete(**body).json()["choices"][0]["text"]
        return text.removeprefix(prompt) if number % 4 == 1 else text

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(2 * len(asked))))
    expected = [server.alone(prompt, **parameters) for prompt, parameters in asked]
    assert found == expected * 2
    several = server.complete(prompt=POEM, n=3, seed=2, max_tokens=9).json()["choices"]
    assert [one["text"] for one in several] == [server.alone(POEM, seed=seed, max_new_tokens=9) for seed in (2, 3, 4)]


def test_a_conversation_is_read_from_where_it_was_on(tokenizer: Tokenizer) -> None:
    decoder = make_decoder(make_config(tokenizer.vocab_size, max_position_embeddings=512))
    answers = {}
    for kept in (0, None):
        with served(decoder, tokenizer.with_prompt_template("问：{src_txt}\n答："), prefix_tokens=kept) as server:
            messages, lengths = [{"role": "system", "content": POEM}], []
            answers[kept] = []
            for turn in ("春", "山", "花"):
                messages.append({"role": "user", "content": turn})
                passes = len(server.pace.rows)
                body = {"messages": messages, "seed": 1, "max_tokens": 20, "logprobs": False}
                answer = server.post("/v1/chat/completions", body).json()
                messages.append(answer["choices"][0]["message"])
                answers[kept].append(messages[-1]["content"])
                lengths.append((server.pace.rows[passes], answer["usage"]["prompt_tokens"]))
        for (read, prompt), (_, before) in zip(lengths[1:], lengths, strict=False):
            assert read <= prompt - (before - 1) // 16 * 16 if kept is None else read == prompt
    assert answers[0] == answers[None]


def test_what_is_asked_of_a_prompts_own_tokens_is_told_whatever_is_kept(server: Served) -> None:
    body = {"prompt": POEM, "echo": True, "max_tokens": 0, "logprobs": 2}
    first = server.complete(**body).json()["choices"]
    server.complete(prompt=POEM, max_tokens=3, seed=1)
    assert server.complete(**body).json()["choices"] == first


def test_usage_and_metrics_tell_what_was_not_read(tokenizer: Tokenizer) -> None:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        def cached(**options: Any) -> int:
            asked: dict[str, Any] = {"model": "small", "prompt": [POEM, POEM[:40]], "max_tokens": 3, "seed": 1}
            usage = client.completions.create(**asked | options).usage
            assert usage is not None
            details = usage.prompt_tokens_details
            return details.cached_tokens or 0 if details else 0

        prompts = server.generator.encode([POEM, POEM[:40]])
        all_but_the_last = [(len(ids) - 1) // 16 * 16 for ids in prompts]
        assert cached(prompt=[POEM]) == 0
        assert cached(prompt=[POEM], n=3) == all_but_the_last[0]  # prompts are counted once, however many texts
        assert cached() == sum(all_but_the_last)
        assert cached(prompt="春") == 0
        total = 3 * all_but_the_last[0] + sum(all_but_the_last)
        assert f"moyun_cached_prompt_tokens_total {float(total)}" in httpx.get(f"{server.url}/metrics").text
