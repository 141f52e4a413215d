"""JSON and regular expressions over HTTP: OpenAI's response_format, and moyun's own parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pydantic
import pytest

from modules.config.guided import grammar
from modules.inference.guided_tokens import MADE
from modules.inference.server import requests
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder
from tests.helpers.server_tools import Served, served

pytestmark = pytest.mark.server

LINE = {"type": "object", "properties": {"line": {"type": "string", "pattern": "^[一-龥]{5}$"}}, "required": ["line"]}
STRICT = {**LINE, "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "line", "schema": STRICT, "strict": True}}
OPTIONS: dict[str, Any] = {"model": "small", "seed": 4, "max_tokens": 80}


class Poem(pydantic.BaseModel):
    dynasty: str = pydantic.Field(pattern="^[唐宋]$")
    year: int = pydantic.Field(ge=618, le=1279)


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Served]:
    decoder = make_decoder(make_config(tokenizer.vocab_size, max_position_embeddings=200))
    with served(decoder, tokenizer.with_prompt_template("问：{src_txt}\n答："), max_new_tokens=120) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_chat_and_completions_keep_a_schema(server: Served, client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "春"}]
    asked: dict[str, Any] = {"response_format": FORMAT, "messages": messages, **OPTIONS}
    (choice,) = client.chat.completions.create(**asked).choices
    text = choice.message.content
    assert choice.finish_reason == "stop"
    assert re.fullmatch("[一-龥]{5}", json.loads(text or "")["line"])
    assert text == server.alone("春", seed=4, max_new_tokens=80, json_schema=STRICT)
    streamed = client.chat.completions.create(stream=True, **asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text
    for extra in ({"response_format": FORMAT}, {"json_schema": STRICT}, {"json_schema": json.dumps(STRICT)}):
        answer = client.completions.create(prompt=["春", "夏"], extra_body=extra, **OPTIONS)
        assert answer.choices[0].text == text
        assert answer.choices[1].text == server.alone("夏", seed=4, max_new_tokens=80, json_schema=STRICT)


def test_a_pydantic_model_comes_back(client: openai.OpenAI) -> None:
    completion = client.chat.completions.parse(
        messages=[{"role": "user", "content": "春"}], response_format=Poem, **OPTIONS
    )
    poem = completion.choices[0].message.parsed
    assert poem is not None
    assert poem.dynasty in "唐宋"


def test_an_object_an_expression_and_invocations(server: Served) -> None:
    body = {"prompt": "春", "response_format": {"type": "json_object"}, **OPTIONS}
    (choice,) = server.post("/v1/completions", body).json()["choices"]
    assert choice["text"] == server.alone("春", seed=4, max_new_tokens=80, json_schema={"type": "object"})
    assert choice["text"].startswith("{")
    body = {"prompt": "春", "regex": "[一-龥]{3}", "n": 2, "logprobs": 0, **OPTIONS}
    answer = server.post("/v1/completions", body).json()["choices"]
    assert all(re.fullmatch("[一-龥]{3}", choice["text"]) for choice in answer)
    for value in (STRICT, json.dumps(STRICT)):
        params = {"json_schema": value, "seed": 4, "max_new_tokens": 80}
        found = server.post("/invocations", {"inputs": ["春"], "params": params}).json()["predictions"][0]["text"]
        assert found == server.alone("春", **params)


def test_what_is_cut_says_so(server: Served) -> None:
    answer = server.post("/v1/completions", {"prompt": "春", "response_format": FORMAT, "max_tokens": 5}).json()
    assert answer["choices"][0]["finish_reason"] == "length"


def test_what_gets_too_complex_is_cut_too(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "LIMITS", {"step_max_items": 40, "step_lexer_fuel": 200})
    MADE.pop(server.generator.tokenizer, None)
    schema = {"type": "array", "items": {"enum": [f"甲{n}" for n in range(300)]}, "minItems": 9}
    answer = server.post("/v1/completions", {"prompt": "春", "json_schema": schema, **OPTIONS}).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] < OPTIONS["max_tokens"]
    MADE.pop(server.generator.tokenizer)


BROKEN = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {"a": {"contains": {}}}}}}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"response_format": BROKEN}, "response_format", 'Unimplemented keys: ["contains"] (at properties.a)'),
        ({"response_format": "json"}, "response_format", "response_format must be {'type': 'text'}"),
        ({"response_format": {}}, "response_format", "response_format must be {'type': 'text'}"),
        ({"response_format": {"type": "grammar"}}, "response_format", "response_format must be {'type': 'text'}"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format", "response_format must be"),
        ({"response_format": FORMAT | {"strict": True}}, "response_format", "response_format must be"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format",
            "the schema None",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}},
            "response_format",
            "the strict 'yes'",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "grammar": 1}}},
            "response_format",
            "'grammar' in its json_schema",
        ),
        ({"response_format": FORMAT, "form": "五绝"}, "response_format", "and form exclude each other"),
        ({"response_format": FORMAT, "json_schema": {}}, "response_format", "and json_schema exclude each other"),
        ({"regex": "(a)\\1"}, "regex", "regex can't be kept: backreferences are not supported (at character 4)"),
        ({"regex": "("}, "regex", "unclosed group (at character 1)"),
        ({"regex": 5}, "regex", "regex must be a text, not 5"),
        ({"regex": "\ud800"}, "regex", "half a surrogate pair"),
        ({"json_schema": []}, "json_schema", "json_schema must be a text, not []"),
        ({"json_schema": "[]"}, "json_schema", "json_schema isn't a JSON object"),
        ({"form": "七律", "max_tokens": 16}, "form", "takes 65 tokens or more from here to its end, and 16 may be"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(
    server: Served, path: str, given: dict[str, Any], field: str, message: str
) -> None:
    asked = {"prompt": "春"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "春"}]}
    response = httpx.post(
        f"{server.url}{path}", content=json.dumps(asked | given), headers={"Content-Type": "application/json"}
    )
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert message in error["message"]
    assert error["message"].startswith(field)
    assert "\n" not in error["message"]


def test_the_name_of_the_room_is_the_clients(server: Served) -> None:
    body = {"messages": [{"role": "user", "content": "春"}], "form": "七律", "max_completion_tokens": 16}
    assert "give max_completion_tokens=65" in server.post("/v1/chat/completions", body).json()["error"]["message"]


def test_a_schema_is_tried_beside_the_event_loop(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are answered while it is."""
    health: list[int] = []
    tried = requests.fault_of

    def slow(key: str, text: str) -> str | None:
        health.append(httpx.get(f"{server.url}/health", timeout=5).status_code)
        return tried(key, text)

    monkeypatch.setattr(requests, "fault_of", slow)
    assert server.post("/v1/completions", {"prompt": "春", "regex": "春{3}", **OPTIONS}).status_code == 200
    assert health == [200]


def test_a_tokenizer_that_cannot_write_json_is_a_refusal() -> None:
    from modules.tokenizer.tokenizer import load_tokenizer
    from tests.helpers.models import ROOT

    tokenizer = load_tokenizer(ROOT / "tests" / "files" / "modelscope" / "base")
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer) as server:
        answer = server.post("/v1/completions", {"prompt": "春", "response_format": FORMAT})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "response_format"
        assert "can't be kept with this model's tokenizer (BERT's WordPiece)" in error["message"]
