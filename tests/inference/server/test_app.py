"""The server's answers over real HTTP: OpenAI's client, MLflow's protocol, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from modules.config.generation import GenerationConfig
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import ROOT, make_config, make_decoder
from tests.helpers.server_tools import Served, served

pytestmark = pytest.mark.server

PROMPTS = ["白日依山尽，", "春", "", "床前明月光，疑是地上霜。"]


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Served]:
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    with served(decoder, tokenizer, body_bytes=20_000, max_new_tokens=90, prompt_tokens=60, request_rows=8) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


# --- OpenAI's client ---


def test_openais_client_gets_what_the_model_writes_alone(server: Served, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="small", prompt=PROMPTS, max_tokens=20, seed=4, temperature=0.7, top_p=0.9, extra_body={"top_k": 50}
    )
    expected = [server.alone(p, max_new_tokens=20, seed=4, temperature=0.7, top_p=0.9, top_k=50) for p in PROMPTS]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in answer.choices} <= {"length", "stop"}
    assert answer.usage is not None
    prompt_tokens = sum(len(server.generator.tokenizer.encode_prompt(prompt)) for prompt in PROMPTS)
    assert answer.usage.prompt_tokens == prompt_tokens
    assert answer.usage.total_tokens == prompt_tokens + answer.usage.completion_tokens
    assert (answer.object, answer.model) == ("text_completion", "small")


def test_openais_client_reads_the_stream(server: Served, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "small", "prompt": PROMPTS[:2], "max_tokens": 20, "seed": 4, "echo": True}
    texts, finishes, usage = ["", ""], {}, None
    for chunk in client.completions.create(stream=True, stream_options={"include_usage": True}, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    whole = client.completions.create(**options)
    assert texts == [choice.text for choice in whole.choices]
    assert texts[0] == PROMPTS[0] + server.alone(PROMPTS[0], max_new_tokens=20, seed=4)
    assert finishes == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage


def test_token_ids_are_a_prompt_as_they_are(server: Served, client: openai.OpenAI) -> None:
    """A text comes after its start; before ids comes nothing."""
    tokenizer = server.generator.tokenizer
    ids, bare = tokenizer.encode_prompt("春眠"), tokenizer.encode("春眠")
    options: dict[str, Any] = {"model": "small", "max_tokens": 8, "temperature": 0, "echo": True}
    (text,) = client.completions.create(prompt="春眠", **options).choices
    assert client.completions.create(prompt=ids, **options).choices[0].text == text.text
    answer = client.completions.create(prompt=[bare, ids], **options)
    expected = server.generator.write_ids([bare, ids], GenerationConfig(max_new_tokens=8, temperature=0.0))
    assert [choice.text for choice in answer.choices] == ["春眠" + row.text for row in expected]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(bare) + len(ids)


def test_choices_of_a_prompt_are_the_texts_of_the_next_seeds(server: Served, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "small", "max_tokens": 12, "temperature": 0.9, "echo": True}
    answer = client.completions.create(prompt=["春", "山"], n=3, best_of=3, seed=5, **options)
    expected = [p + server.alone(p, max_new_tokens=12, temperature=0.9, seed=s) for p in "春山" for s in (5, 6, 7)]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len(set(expected)) == 6
    assert answer.usage is not None
    one = client.completions.create(prompt=["春", "山"], seed=5, **options)
    assert one.usage is not None
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens  # they are read once
    texts = [""] * 6
    for chunk in client.completions.create(prompt=["春", "山"], n=3, seed=5, stream=True, **options):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected
    unseeded = client.completions.create(model="small", prompt="春", n=3, max_tokens=12)
    assert len({choice.text for choice in unseeded.choices}) == 3
    last = client.completions.create(model="small", prompt="春", n=2, max_tokens=12, seed=2**63 - 1)
    assert last.choices[1].text == server.alone("春", max_new_tokens=12, seed=0)


def test_openais_defaults(server: Served, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="small", prompt="春")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16 or answer.choices[0].finish_reason == "stop"
    stopped = client.completions.create(model="small", prompt="春", temperature=0, max_tokens=9)
    text = stopped.choices[0].text
    again = client.completions.create(model="small", prompt="春", temperature=0, max_tokens=9, stop=text[4])
    assert again.choices[0].text == text[: text.index(text[4])]
    assert again.choices[0].finish_reason == "stop"


def test_openais_client_lists_the_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "moyun"
    with pytest.raises(openai.NotFoundError, match="'other' isn't served here; 'small' is"):
        client.models.retrieve("other")


def test_openais_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="suffix isn't done here") as caught:
        client.completions.create(model="small", prompt="春", suffix="秋")
    assert caught.value.param == "suffix"
    with pytest.raises(openai.NotFoundError, match="model 'gpt-3' isn't served here"):
        client.completions.create(model="gpt-3", prompt="春")


def test_the_snippets_of_the_docs_work(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8") + (ROOT / "README.md").read_text(encoding="utf-8")
    calls = re.findall(
        r"curl -s localhost:8000(/\S+) [^']*'Content-Type: application/json'[^']*'(.*?)'", text, re.DOTALL
    )
    assert len(calls) == 4
    for path, body in calls:
        assert server.post(path, json.loads(body)).status_code == 200
    lines = [line[4:] for line in re.findall(r"(    from openai import .*?)\n\n", text, re.DOTALL)[0].splitlines()]
    exec("\n".join(lines).replace("http://127.0.0.1:8000", server.url).replace('"moyun"', '"small"'))
    assert len(capsys.readouterr().out) > 32


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"prompt": None}, "prompt", "prompt must be a text or a list of texts, not None"),
        ({"prompt": 5}, "prompt", "not 5"),
        ({"prompt": ["春", None]}, "prompt", "prompt 1 must be a text, not None"),
        ({"prompt": [1, "春"]}, "prompt", "prompt 0 must be a text, not 1"),
        ({"prompt": [[1, -1]]}, "prompt", "prompt 0 holds -1; this model's token ids are whole numbers from 0 to"),
        ({"prompt": ["春", [1, 10**6]]}, "prompt", "prompt 1 holds 1000000; this model's"),
        ({"prompt": [[True]]}, "prompt", "prompt 0 holds True; this model's"),
        ({"prompt": [[1.0]]}, "prompt", "prompt 0 holds 1.0; this model's"),
        ({"prompt": [[1], []]}, "prompt", "prompt 1 is empty; give at least one token"),
        ({"prompt": [1] * 61}, "prompt", "prompt 0 has 61 tokens; this server takes up to 60"),
        ({"prompt": []}, "prompt", "prompt has 0 texts; a request may have 1 to 8"),
        ({"prompt": ["春"] * 9}, "prompt", "prompt has 9 texts"),
        ({"prompt": "春" * 61}, "prompt", "prompt 0 has 61 characters; this server takes up to 59"),
        ({"prompt": "驫" * 20}, "prompt", "prompt 0 has 60 tokens; this server takes up to 59"),
        ({"max_tokens": 91}, "max_tokens", "max_tokens (91) is over 90 (limits.max_new_tokens)"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens (0) must be at least 1"),
        ({"max_tokens": 2.5}, "max_tokens", "max_tokens must be a whole number, not 2.5"),
        ({"max_tokens": [4]}, "max_tokens", "max_tokens must be a whole number, not [4]"),
        ({"temperature": True}, "temperature", "temperature must be a number, not True"),
        ({"temperature": "hot"}, "temperature", "temperature must be a number, not 'hot'"),
        ({"temperature": -1}, "temperature", "temperature (-1) must be 0 (greedy) or from 0.001 to 1000"),
        ({"temperature": 1e999}, "temperature", "temperature must hold finite numbers, not Infinity"),
        ({"top_p": float("nan")}, "top_p", "top_p must hold finite numbers, not NaN"),
        ({"seed": 10**22}, "seed", "seed (10000000000000000000000) must be from 0 to"),
        ({"max_tokens": -(10**22)}, "max_tokens", "must be at least 1"),
        ({"top_k": 1e300}, "top_k", "top_k must be a whole number, not 1e+300"),
        ({"stream_options": {"include_usage": float("inf")}}, "include_usage", "must hold finite numbers"),
        ({"user": 5}, "user", "user must be a text, not 5"),
        ({"seed": -1}, "seed", "seed (-1) must be from 0 to"),
        ({"stop": ["a"] * 17}, "stop", "stop has 17 texts; there may be 16"),
        ({"stop": "a" * 257}, "stop", "stop holds a text of 257 characters; there may be 256"),
        ({"stop": [None]}, "stop", "stop must be a text or a list of texts, not [None]"),
        ({"stop": ""}, "stop", "stop must not hold an empty text"),
        ({"stream": 1}, "stream", "stream must be true or false, not 1"),
        ({"stream_options": {"x": 1}}, "stream_options", "stream_options must be"),
        ({"n": 9}, "n", "n (9) texts of each of 1 prompts are too many; a request may have 1 to 8 in all"),
        ({"n": 3, "prompt": ["春"] * 3}, "n", "n (3) texts of each of 3 prompts are too many"),
        ({"n": 0}, "n", "n must be a whole number of at least 1, not 0"),
        ({"n": 1.0}, "n", "n must be a whole number of at least 1, not 1.0"),
        ({"best_of": 3}, "best_of", "best_of isn't done here: leave it out, or give what n is, 1 (not 3)"),
        ({"best_of": 1, "n": 2}, "best_of", "best_of isn't done here"),
        ({"best_of": True}, "best_of", "best_of isn't done here"),
        ({"suffix": "x"}, "suffix", "suffix isn't done here"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "numbers from -100 to 100, not '5' to 101"),
        ({"logit_bias": {"100000": 1}}, "logit_bias", "logit_bias names token 100000; this model's token ids are"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "logit_bias must be a mapping of token ids to numbers"),
        ({"presence_penalty": -3}, "presence_penalty", "presence_penalty (-3) must be from -2 to 2"),
        ({"min_p": 2}, "min_p", "min_p (2) must be from 0"),
        ({"logprobs": 6}, "logprobs", "logprobs must be a whole number from 0 to 5, or null, not 6"),
        ({"logprobs": True}, "logprobs", "logprobs must be a whole number"),
        ({"max_tokens": False, "echo": True}, "max_tokens", "max_tokens must be a whole number, not False"),
        ({"max_token": 5}, "max_token", "'max_token' isn't known here; there is prompt, model, max_tokens"),
        ({"model": None}, "model", "model must be a text, not None"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_field(
    server: Served, change: dict[str, Any], field: str, message: str
) -> None:
    passes = server.pace.passes
    content = json.dumps({"prompt": "春"} | change)
    answer = httpx.post(f"{server.url}/v1/completions", content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, field, "invalid_request_error")
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert server.pace.passes == passes  # nothing was computed


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b"{}", "text/plain", 415, "Content-Type must be application/json, not 'text/plain'"),
        (b"{", "application/json", 400, "the body isn't JSON in UTF-8"),
        (b'{"prompt": "\xe6\x98"}', "application/json", 400, "the body isn't JSON in UTF-8"),
        (b"[" * 15_000, "application/json", 400, "nested too deep"),
        (b"[1]", "application/json; charset=utf-8", 400, "the body must be a JSON object, not [1]"),
        (b'{"prompt": "a\\ud800"}', "application/json", 400, "prompt 0 holds half a surrogate pair at character 1"),
        (b'{"\\ud800": 1}', "application/json", 400, r"'\ud800' isn't known here"),
        (
            b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
            "application/json",
            400,
            "seed must hold finite numbers, not Infinity or",
        ),
        (b'{"prompt": "' + b"x" * 20_000 + b'"}', "application/json", 413, "the body is over 20000 bytes"),
    ],
)
def test_a_body_that_cannot_be_read(server: Served, content: bytes, kind: str, status: int, message: str) -> None:
    for body in (content, iter([content])):  # with its length said beforehand, and in pieces
        answer = httpx.post(f"{server.url}/v1/completions", content=body, headers={"Content-Type": kind})
        assert answer.status_code == status
        assert message in answer.json()["error"]["message"]


def test_a_prompt_of_all_the_tokens_that_a_refusal_names_is_taken(server: Served) -> None:
    assert server.complete(prompt="春" * 59, max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    ("field", "taken", "refused"),
    [
        ("max_tokens", [1, 90], [0, 91]),
        ("temperature", [0, 0.001, 1000], [0.0009, 1001]),
        ("top_p", [0.001, 1], [0, 1.001]),
        ("top_k", [0, 10**12], [-1, 10**12 + 1]),
        ("repetition_penalty", [0.01, 100], [0.009, 101]),
        ("presence_penalty", [-2, 2], [-2.1, 2.1]),
        ("frequency_penalty", [-2, 2], [-2.1, 2.1]),
        ("logit_bias", [{"5": -100}, {"5": 100}], [{"5": -101}, {"5": 101}]),
        ("seed", [0, 2**63 - 1], [-1, 2**63]),
        ("logprobs", [0, 5], [-1, 6]),
        ("n", [1, 8], [0, 9]),
        ("stop", [["a"] * 16, "a" * 256], [["a"] * 17, "a" * 257]),
        ("prompt", [["春"] * 8, "春" * 59, [1] * 60], [["春"] * 9, "春" * 60, [1] * 61]),
    ],
)
def test_the_numbers_that_a_refusal_names_are_taken(
    server: Served, field: str, taken: list[Any], refused: list[Any]
) -> None:
    body = {"prompt": "春", "max_tokens": 2}
    for value in taken:
        answer = server.complete(**body | {field: value})
        assert answer.status_code == 200, (value, answer.text)
    for value in refused:
        assert server.complete(**body | {field: value}).json()["error"]["param"] == field


def test_a_body_of_all_the_bytes_that_a_refusal_names_is_taken(server: Served) -> None:
    for size, status in ((20_000, 200), (20_001, 413)):
        body = b'{"prompt": "a", "max_tokens": 1}'.ljust(size)
        answer = httpx.post(f"{server.url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status


def test_head_is_get_without_a_body_and_other_methods_are_told_which_there_are(server: Served) -> None:
    for path in ("/health", "/ready", "/ping", "/v1/models", "/metrics", "/card", "/"):
        got, head = (httpx.request(method, f"{server.url}{path}") for method in ("GET", "HEAD"))
        assert (head.status_code, head.content) == (200, b"")
        assert path == "/metrics" or head.headers["Content-Length"] == str(len(got.content))
    for method, path, allowed in (("POST", "/health", {"GET", "HEAD"}), ("HEAD", "/v1/completions", {"POST"})):
        answer = httpx.request(method, f"{server.url}{path}")
        assert answer.status_code == 405
        assert set(answer.headers["Allow"].split(", ")) == allowed


def test_other_paths_and_methods_are_one_line_too(server: Served) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/completions", 405), ("PUT", "/ready", 405)):
        answer = httpx.request(method, f"{server.url}{path}")
        assert answer.status_code == status
        assert f"{method} '{path}'" in answer.json()["error"]["message"]
        assert (
            "there is POST /v1/completions, /v1/chat/completions and /invocations" in answer.json()["error"]["message"]
        )


# --- MLflow's protocol ---


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": {"src_txt": ["白日依山尽，", "春"]}},
        {"inputs": [{"src_txt": "白日依山尽，"}, {"src_txt": "春"}]},
        {"inputs": {"src_txt": ["白日依山尽，", "春"], "id": [1, 2]}},
        {"inputs": ["白日依山尽，", "春"]},
        {"instances": [{"src_txt": "白日依山尽，"}, {"src_txt": "春"}]},
        {"dataframe_records": [{"src_txt": "白日依山尽，"}, {"src_txt": "春"}]},
        {"dataframe_split": {"columns": ["src_txt"], "data": [["白日依山尽，"], ["春"]]}},
        {"dataframe_split": {"index": [0, 1], "columns": ["id", "src_txt"], "data": [[1, "白日依山尽，"], [2, "春"]]}},
    ],
)
def test_mlflows_forms_give_what_the_model_gives(server: Served, body: dict[str, Any]) -> None:
    params = {"max_new_tokens": 12, "temperature": 0.8, "top_k": 40, "seed": 2, "stop": ["。"]}
    answer = server.post("/invocations", body | {"params": params})
    assert answer.json() == {"predictions": server.generator(["白日依山尽，", "春"], **params)}


def test_mlflows_defaults_are_the_models(server: Served) -> None:
    answer = server.post("/invocations", {"inputs": {"src_txt": "春"}, "params": {"temperature": 0.0}})
    length = min(GenerationConfig().max_new_tokens, 90)
    assert answer.json() == {"predictions": [server.generator("春", temperature=0.0, max_new_tokens=length)]}
    ping = httpx.get(f"{server.url}/ping")
    assert (ping.status_code, ping.text) == (200, "\n")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "body must have one of inputs, instances, dataframe_split, dataframe_records"),
        ({"inputs": {"text": ["春"]}}, "inputs must have the column src_txt"),
        ({"inputs": {"src_txt": None}}, "inputs must have the column src_txt"),
        ({"inputs": {"src_txt": [None]}}, "src_txt 0 must be a text, not None"),
        ({"inputs": {"src_txt": [5]}}, "src_txt 0 must be a text, not 5"),
        ({"inputs": {"src_txt": [[5]]}}, "src_txt 0 must be a text, not [5]"),
        ({"dataframe_split": {"columns": ["src_txt"], "data": [[1.5], ["春"]]}}, "src_txt 0 must be a text, not 1.5"),
        (
            {"dataframe_split": {"columns": ["src_txt"], "data": ["春"]}},
            "dataframe_split must have data of 1 values a row",
        ),
        ({"dataframe_split": {"columns": "src_txt", "data": []}}, "dataframe_split must have columns"),
        ({"dataframe_records": ["春"]}, "dataframe_records must have the column src_txt"),
        ({"inputs": ["春", 5]}, "src_txt 1 must be a text, not 5"),
        ({"dataframe_records": "春"}, "dataframe_records must have the column src_txt"),
        ({"inputs": {"src_txt": ["春"]}, "params": [1]}, "params must be an object"),
        ({"inputs": {"src_txt": ["春"]}, "params": {"top_p": None}}, "top_p must not be null"),
        ({"inputs": {"src_txt": ["春"]}, "params": {"top": 1}}, "'top' isn't known here; there is max_new_tokens"),
        ({"inputs": {"src_txt": ["春" * 500]}}, "src_txt 0 has 500 characters"),
        ({"inputs": {"src_txt": ["春"]}, "params": {"max_new_tokens": 91}}, "max_new_tokens (91) is over 90"),
    ],
)
def test_mlflows_protocol_refuses_in_mlflows_form(server: Served, body: dict[str, Any], message: str) -> None:
    answer = server.post("/invocations", body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert message in answer.json()["message"]
