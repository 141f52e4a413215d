"""2,000 odd requests: each gets text or one line that says why not; never a 5xx, never a traceback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message

from modules.config.generation import LimitsConfig
from modules.inference.server.app import Service, create_app
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder
from tests.helpers.server_tools import EngineInProcess, Pace

texts = st.text(st.characters(), max_size=12) | st.sampled_from(["春", "\ud800", "\x00", "<|endoftext|>", "𠮷" * 40])
numbers = st.integers() | st.floats() | st.sampled_from([0, 1, 2, -1, 0.5, 2**63, 2**64, 1e308, 10**400])
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
parameters = {
    "max_tokens": st.integers(0, 5) | values,
    "max_new_tokens": st.integers(0, 5) | values,
    "temperature": st.floats(0, 2) | values,
    "top_k": st.integers(0, 9) | values,
    "top_p": st.floats(0, 1) | values,
    "min_p": st.floats(0, 1) | values,
    "repetition_penalty": st.floats(0.5, 2) | values,
    "presence_penalty": st.floats(-2, 2) | values,
    "frequency_penalty": st.floats(-2, 2) | values,
    "logit_bias": st.dictionaries(st.integers(-1, 2000).map(str), st.floats(-100, 100), max_size=3) | values,
    "seed": st.integers(0, 9) | values,
    "stop": st.lists(texts, max_size=3) | values,
}
others = {"stream": st.booleans() | values, "echo": st.booleans() | values, "model": st.just("small") | values}
others |= dict.fromkeys(("n", "best_of", "suffix", "user", "stream_options"), values)
others["logprobs"] = st.integers(0, 5) | values
prompts = texts | st.lists(texts, max_size=4) | st.lists(st.integers(-1, 1800), max_size=9) | values
completions = st.fixed_dictionaries(
    {"prompt": prompts}, optional={k: v for k, v in (parameters | others).items() if k != "max_new_tokens"}
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]) | values, "content": texts | values}
    ),
    max_size=3,
)
chats = st.fixed_dictionaries(
    {"messages": messages | values},
    optional={k: v for k, v in (parameters | others).items() if k != "max_new_tokens"}
    | dict.fromkeys(("max_completion_tokens", "top_logprobs", "tools", "response_format", "metadata", "store"), values),
)
params = st.fixed_dictionaries({}, optional={k: v for k, v in parameters.items() if k != "max_tokens"})
records = st.lists(st.fixed_dictionaries({"src_txt": texts | values}), max_size=3)
split = st.fixed_dictionaries(
    {"columns": st.just(["src_txt"]) | values, "data": st.lists(st.lists(texts | values, max_size=2), max_size=3)}
)
inputs = st.fixed_dictionaries({"src_txt": prompts})
invocations = st.one_of(
    st.fixed_dictionaries({"inputs": inputs | records | values}, optional={"params": params | values}),
    st.fixed_dictionaries({"instances": records | values}, optional={"params": params | values}),
    st.fixed_dictionaries({"dataframe_records": records | values}, optional={"params": params | values}),
    st.fixed_dictionaries({"dataframe_split": split | values}, optional={"params": params | values}),
)
requests = st.one_of(
    st.tuples(st.just("/v1/completions"), (completions | values).map(json.dumps).map(str.encode)),
    st.tuples(st.just("/invocations"), (invocations | values).map(json.dumps).map(str.encode)),
    st.tuples(st.just("/v1/chat/completions"), (chats | values).map(json.dumps).map(str.encode)),
    st.tuples(st.sampled_from(["/v1/completions", "/v1/chat/completions", "/invocations"]), st.binary(max_size=40)),
)


class Caller:
    """The app without HTTP around it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.loop = asyncio.new_event_loop()
        service = Service("small", LimitsConfig(max_new_tokens=4, prompt_tokens=30, body_bytes=2000))
        decoder = make_decoder(make_config(tokenizer.vocab_size))
        self.model = EngineInProcess(decoder, tokenizer, service)
        self.engine = self.model.engine
        self.loop.run_until_complete(self.model.serve())
        self.app: ASGIApp = create_app(service)

    def __call__(self, path: str, body: bytes) -> tuple[int, bytes]:
        return self.loop.run_until_complete(self.call(path, body))

    async def call(self, path: str, body: bytes) -> tuple[int, bytes]:
        sent: list[Message] = []
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return given.pop() if given else await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": headers,
            "query_string": b"",
        }
        await self.app(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture(scope="module")
def caller(tokenizer: Tokenizer) -> Iterator[Caller]:
    caller = Caller(tokenizer)
    yield caller
    caller.loop.run_until_complete(caller.model.stop())
    caller.loop.close()


@given(requests)
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@example(("/v1/completions", b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}"))
@example(("/v1/completions", b'{"prompt": "x", "stop": ' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}"))
@example(("/v1/completions", b'{"prompt": "x", "model": "\\ud800\\n"}'))
def test_an_odd_request_gets_text_or_one_line(caller: Caller, request_: tuple[str, bytes]) -> None:
    check_answer(request_[0], *caller(*request_))


def check_answer(path: str, status: int, answer: bytes) -> None:
    if status == 200:
        assert b"Traceback" not in answer
        if answer.startswith(b"data: "):  # a stream has said 200 before anything could go wrong
            events = answer.decode().removesuffix("\n\n").split("\n\n")
            assert events[-1] == "data: [DONE]", events[-1]
            assert not any("error" in json.loads(event.removeprefix("data: ")) for event in events[:-1])
        else:
            assert set(json.loads(answer)) & {"choices", "predictions"}
        return
    assert status in (400, 404, 413), (status, answer)
    content = json.loads(answer)
    message = content["message"] if path == "/invocations" else content["error"]["message"]
    assert message
    assert "\n" not in message
    assert len(message) < 1000


def test_a_stream_that_breaks_off_would_be_seen(caller: Caller) -> None:
    body = json.dumps({"prompt": "春", "max_tokens": 4, "stream": True}).encode()
    check_answer("/v1/completions", *caller("/v1/completions", body))
    hook = caller.engine.decoder.register_forward_pre_hook(Pace(fail=True))
    try:
        broken = caller("/v1/completions", body)
    finally:
        hook.remove()
    assert broken[0] == 200
    with pytest.raises(AssertionError, match="the model failed on this request"):
        check_answer("/v1/completions", *broken)


def test_the_fuzz_reaches_the_model(caller: Caller) -> None:
    """Or the test above would prove nothing."""
    body = {"prompt": ["春", "\x00"], "max_tokens": 4, "seed": 1, "stop": ["x"], "stream": True, "echo": True}
    assert b"[DONE]" in caller("/v1/completions", json.dumps(body).encode())[1]
    body = {"messages": [{"role": "user", "content": "\x00"}], "max_tokens": 4, "stream": True, "n": 2}
    assert b"[DONE]" in caller("/v1/chat/completions", json.dumps(body).encode())[1]
    status, answer = caller("/invocations", b'{"inputs": {"src_txt": ["x"]}, "params": {"max_new_tokens": 2}}')
    assert (status, list(json.loads(answer))) == (200, ["predictions"])
