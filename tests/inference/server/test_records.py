"""What a recorder is told of requests, feedback over HTTP, and what each API key has used."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from modules.config.generation import GenerationConfig
from modules.inference.server.access import Access
from modules.inference.server.protocols.openai import OUTCOME, EventStream
from modules.inference.server.records.transcript import AnswerRecord, WrittenText
from modules.inference.server.requests import CompletionRequest, RequestError
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder
from tests.helpers.server_tools import Notebook, Served, send_and_keep, served, until

pytestmark = pytest.mark.server

SAMPLING = {"seed": 3, "max_tokens": 6}


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Served]:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer) as running:
        yield running


@pytest.fixture
def notebook(server: Served) -> Iterator[Notebook]:
    server.service.recorder = notebook = Notebook()
    yield notebook
    server.service.recorder = None
    server.pace.fail, server.pace.seconds = False, 0.0


def one(notebook: Notebook) -> AnswerRecord:
    """The only record, which is made after the answer's last byte was sent."""
    until(lambda: notebook.records)
    (record,) = notebook.records
    return record


# --- what is recorded ---


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
def test_a_completion_is_recorded_without_its_prompt(
    server: Served, notebook: Notebook, stream: bool, echo: bool
) -> None:
    answer = server.complete(prompt="春眠", stream=stream, echo=echo, **SAMPLING)
    record = one(notebook)
    written = server.alone("春眠", seed=3, max_new_tokens=6)
    assert [text.text for text in record.texts] == [written]
    assert record.texts[0].finish in ("stop", "length")
    assert record.id in answer.text
    assert (record.outcome, record.endpoint, record.told) == ("ok", "completions", True)
    assert record.request.prompts == ["春眠"]
    assert record.request.config.seed == 3
    assert record.prompt_tokens == len(server.generator.tokenizer.encode_prompt("春眠"))
    assert 0 < record.generated_tokens <= 6
    assert record.seconds > 0
    assert record.model["name"] == "small"


def test_each_text_of_several_prompts_is_recorded(server: Served, notebook: Notebook) -> None:
    server.complete(prompt=["春", "秋"], n=2, **SAMPLING)
    texts = [server.alone(prompt, seed=seed, max_new_tokens=6) for prompt in "春秋" for seed in (3, 4)]
    assert [text.text for text in one(notebook).texts] == texts


def test_chat_is_recorded_with_its_conversation(server: Served, notebook: Notebook) -> None:
    messages = [
        {"role": "user", "content": "春"},
        {"role": "assistant", "content": "眠"},
        {"role": "user", "content": "秋"},
    ]
    answer = server.post("/v1/chat/completions", {"messages": messages, **SAMPLING}).json()
    record = one(notebook)
    assert [(role, text) for role, text in record.request.messages] == [(m["role"], m["content"]) for m in messages]
    assert record.texts[0].text == answer["choices"][0]["message"]["content"]
    assert record.id == answer["id"]


def test_invocations_are_recorded_without_the_prompts_that_they_answer_with(server: Served, notebook: Notebook) -> None:
    body = {"inputs": {"src_txt": ["春", "秋"]}, "params": {"max_new_tokens": 4, "seed": 1}}
    answer = server.post("/invocations", body).json()
    record = one(notebook)
    found = [f"{prompt}{text.text}" for prompt, text in zip("春秋", record.texts, strict=True)]
    assert found == [prediction["text"] for prediction in answer["predictions"]]
    assert not record.told


def test_a_request_that_the_model_failed_on_is_recorded_as_such(server: Served, notebook: Notebook) -> None:
    server.pace.fail = True
    assert server.complete(prompt="春", **SAMPLING).status_code == 500
    record = one(notebook)
    assert (record.outcome, record.texts) == ("failed", [WrittenText("", None)])


def test_of_a_client_that_hangs_up_the_text_so_far_is_recorded(server: Served, notebook: Notebook) -> None:
    server.pace.seconds = 0.05
    body = {"prompt": "春", "max_tokens": 40, "stream": True, "logit_bias": {"0": -100}}
    client = send_and_keep(server.url, "/v1/completions", body)
    assert b"data:" in client.recv(4096) + client.recv(4096)
    client.close()
    record = one(notebook)
    assert (record.outcome, record.texts[0].finish) == ("disconnected", None)


def test_refused_requests_are_not_recorded(server: Served, notebook: Notebook) -> None:
    assert server.complete(prompt="春", max_tokens=0).status_code == 400
    server.complete(prompt="秋", **SAMPLING)
    assert one(notebook).request.prompts == ["秋"]


def test_a_stream_tells_when_its_first_text_came(server: Served, notebook: Notebook) -> None:
    server.pace.seconds = 0.02
    server.complete(prompt="春", stream=True, **SAMPLING)
    record = one(notebook)
    assert record.first_text_seconds is not None
    assert 0 < record.first_text_seconds < record.seconds


# --- feedback ---


def test_a_rating_reaches_the_recorder(server: Served, notebook: Notebook) -> None:
    body = {"id": "cmpl-1", "value": "down", "comment": "韵", "correction": "春眠不觉晓", "index": 1}
    answer = server.post("/v1/feedback", body)
    assert (answer.status_code, answer.json()) == (200, {"id": "cmpl-1", "object": "feedback", "value": "down"})
    (rating,) = notebook.ratings
    assert (rating.value, rating.comment, rating.correction, rating.index) == ("down", "韵", "春眠不觉晓", 1)


def test_null_is_the_same_as_leaving_it_out(server: Served, notebook: Notebook) -> None:
    body = {"id": "cmpl-1", "value": "up", "comment": None, "correction": None, "index": None}
    assert server.post("/v1/feedback", body).status_code == 200
    assert (notebook.ratings[0].comment, notebook.ratings[0].correction, notebook.ratings[0].index) == ("", None, None)


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"value": "up"}, "id", "id is missing"),
        ({"id": "a"}, "value", "value is missing"),
        ({"id": "a", "value": "good"}, "value", "value must be up or down, not 'good'"),
        ({"id": "a", "value": True}, "value", "value must be a text"),
        ({"id": 5, "value": "up"}, "id", "id must be a text"),
        ({"id": "a", "value": "up", "comment": ["b"]}, "comment", "comment must be a text"),
        ({"id": "a", "value": "up", "correction": " "}, "correction", "correction must be the text as it should"),
        ({"id": "a", "value": "up", "correction": 3}, "correction", "correction must be a text"),
        ({"id": "a", "value": "up", "index": -1}, "index", "index must be the number of a choice"),
        ({"id": "a", "value": "up", "index": True}, "index", "index must be the number of a choice"),
        ({"id": "a", "value": "up", "rating": 5}, "rating", "'rating' isn't known here"),
        ({"id": "a", "value": "up", "comment": "\ud800"}, "comment", "half a surrogate pair"),
    ],
)
def test_a_wrong_rating_is_refused_by_its_field(
    server: Served, notebook: Notebook, body: Any, field: str, message: str
) -> None:
    content = json.dumps(body)
    answer = httpx.post(f"{server.url}/v1/feedback", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert message in answer.json()["error"]["message"]
    assert notebook.ratings == []


def test_the_recorders_refusal_is_the_answer(server: Served, notebook: Notebook) -> None:
    notebook.refusal = RequestError(404, "no such answer", "id", "answer_not_found")
    answer = server.post("/v1/feedback", {"id": "cmpl-1", "value": "up"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "answer_not_found")


def test_a_server_without_a_recorder_takes_no_feedback_and_says_so_on_its_card(server: Served) -> None:
    answer = server.post("/v1/feedback", {"id": "cmpl-1", "value": "up"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "feedback_off")
    assert "traces=1" in answer.json()["error"]["message"]
    assert httpx.get(f"{server.url}/card").json()["feedback"] is False


def test_the_card_says_that_feedback_is_taken(server: Served, notebook: Notebook) -> None:
    assert httpx.get(f"{server.url}/card").json()["feedback"] is True


# --- usage by key ---


@pytest.fixture(scope="module")
def shared(tokenizer: Tokenizer) -> Iterator[Served]:
    access = Access(key={"alice": b"alice-k3y", "bob": b"bob-k3y"})
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer, access=access) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def metrics_of(server: Served, key: str | None = None) -> dict[str, float]:
    text = httpx.get(f"{server.url}/metrics", headers=bearer(key) if key else {}).text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_what_each_key_has_used_is_told_by_its_name(shared: Served) -> None:
    body = {"prompt": "春眠", "logit_bias": {"0": -100}, **SAMPLING}
    answers = [shared.post("/v1/completions", body, headers=bearer(key)) for key in ("alice-k3y", "bob-k3y", "bob-k3y")]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert shared.post("/v1/completions", body, headers=bearer("carol-k3y")).status_code == 401
    used = [answer.json()["usage"] for answer in answers]
    name = 'moyun_requests_total{endpoint="completions",key="bob",outcome="ok"}'
    until(lambda: metrics_of(shared, "bob-k3y").get(name) == 2)
    found = metrics_of(shared, "bob-k3y")
    assert found['moyun_generated_tokens_total{key="alice"}'] == used[0]["completion_tokens"]
    assert found['moyun_generated_tokens_total{key="bob"}'] == 2 * used[0]["completion_tokens"]
    assert found['moyun_prompt_tokens_total{key="bob"}'] == 2 * used[0]["prompt_tokens"]
    assert found['moyun_requests_total{endpoint="completions",key="",outcome="refused"}'] == 1
    assert not any("k3y" in name for name in found)


def test_without_names_the_metrics_are_what_they_were(server: Served) -> None:
    server.complete(prompt="春", **SAMPLING)
    found = metrics_of(server)
    assert found["moyun_generated_tokens_total"] > 0
    assert found["moyun_prompt_tokens_total"] > 0
    assert not any("key=" in name for name in found)


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_a_request_that_was_broken_off_count_too(shared: Served, stream: bool) -> None:
    name = 'moyun_generated_tokens_total{key="alice"}'
    before, shared.pace.seconds, passes = metrics_of(shared, "alice-k3y").get(name, 0), 0.03, shared.pace.passes
    body = {"prompt": "春", "max_tokens": 60, "stream": stream, "logit_bias": {"0": -100}}
    client = send_and_keep(shared.url, "/v1/completions", body, bearer("alice-k3y"))
    until(lambda: shared.pace.passes > passes + 5)
    client.close()
    until(lambda: not shared.engine.running and not shared.service.in_flight)
    shared.pace.seconds = 0.0
    until(lambda: metrics_of(shared, "alice-k3y")[name] == before + shared.pace.passes - passes)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RequestError(400, "form can't be written"), "refused"),
        (RequestError(503, "the server was stopped before this was done"), "overloaded"),
        (RequestError(500, "the model failed on this request"), "failed"),
        (TimeoutError(), "timeout"),
    ],
)
def test_a_stream_that_is_broken_off_counts_as_an_answer_in_one_piece_does(error: Exception, outcome: str) -> None:
    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    scope: dict[str, Any] = {}
    stream = EventStream(None, CompletionRequest([], GenerationConfig()), [], {}, 0)  # type: ignore[arg-type]
    asyncio.run(stream.break_off(scope, send, error))
    assert scope[OUTCOME] == outcome
    assert b'"error"' in sent[0]["body"]
