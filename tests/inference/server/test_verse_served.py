"""Forms of verse over HTTP, in each protocol; and what the server leaves to Python."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from modules.evaluation.verse.form import regular, rhyming
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder
from tests.helpers.server_tools import Served, served

pytestmark = pytest.mark.server

PROMPTS = ["白日依山尽，", "春", "", "床前明月光，疑是地上霜。"]
FORM = {"form": "五绝", "tones": True}


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Served]:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer, max_new_tokens=90) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_completions_and_chat_keep_a_form(server: Served, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="small", prompt=PROMPTS, max_tokens=60, seed=4, extra_body=FORM)
    texts = [choice.text for choice in answer.choices]
    assert texts == [server.alone(prompt, max_new_tokens=60, seed=4, **FORM) for prompt in PROMPTS]
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert regular(prompt + text) == rhyming(prompt + text) == 1.0
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    ids = server.generator.tokenizer.encode_prompt("春")
    as_ids = client.completions.create(model="small", prompt=[ids], max_tokens=60, seed=4, extra_body=FORM)
    assert as_ids.choices[0].text == texts[1]
    chat = client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "春"}], seed=4, extra_body=FORM
    )
    assert chat.choices[0].message.content == texts[1]
    streamed = client.completions.create(
        model="small", prompt="春", max_tokens=60, seed=4, stream=True, extra_body=FORM
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == texts[1]


def test_invocations_keep_a_form(server: Served) -> None:
    params = {"max_new_tokens": 60, "seed": 4, **FORM}
    body = {"inputs": {"src_txt": ["春"]}, "params": params}
    answer = httpx.post(f"{server.url}/invocations", json=body).json()
    assert answer["predictions"][0]["text"] == "春" + server.alone("春", **params)


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"form": "五言"}, "form", "form ('五言') must be one of 五绝"),
        ({"form": 5}, "form", "form must be a text, not 5"),
        ({"tones": True}, "tones", "tones are kept in a form of verse"),
        ({"form": "五绝", "prompt": ["春", "白日依山尽黄河"]}, "form", "belongs where '黄' stands (prompt 1)"),
        ({"form": "五绝", "max_tokens": 23}, "form", "takes 24 tokens or more from here to its end, and 23 may be"),
        ({"form": "五绝", "max_tokens": 23}, "form", "give max_tokens=24 (prompt 0)"),
        ({"num_beams": 4}, "num_beams", "num_beams isn't done by the server"),
        ({"length_penalty": 0.8}, "length_penalty", "length_penalty isn't done by the server"),
        ({"num_beams": 4, "length_penalty": 0.8}, "num_beams", "num_beams isn't done by the server"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(
    server: Served, given: dict[str, object], field: str, message: str
) -> None:
    response = httpx.post(f"{server.url}/v1/completions", json={"prompt": "春", "max_tokens": 30} | given)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert message in error["message"]
    assert error["message"].startswith(field)


def test_num_beams_of_one_is_no_search(client: openai.OpenAI) -> None:
    assert client.completions.create(model="small", prompt="春", max_tokens=4, extra_body={"num_beams": 1}).choices
