"""OpenAI's `logprobs` over real HTTP: values, spelling and offsets, streamed or not; prompts that are only scored."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import openai
import pytest
import torch

from modules.config.generation import GenerationConfig
from modules.evaluation.likelihood import score
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.helpers.models import ROOT, make_config, make_decoder
from tests.helpers.server_tools import Served, served, until

pytestmark = pytest.mark.server

PROMPTS = ["白日依山尽，", "春", "床前明月光，疑是地上霜。", "a驫b"]


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Served]:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def scored(server: Served, **body: Any) -> list[dict[str, Any]]:
    answer = server.complete(**body)
    assert answer.status_code == 200, answer.text
    choices: list[dict[str, Any]] = answer.json()["choices"]
    return choices


def streamed(client: openai.OpenAI, rows: int, **body: Any) -> list[dict[str, Any]]:
    """Each row's chunks put together, in the form of a whole answer's choice."""
    extra = {name: body.pop(name) for name in ("top_k", "min_p") if name in body}
    found: list[dict[str, Any]] = [{"text": "", "finish_reason": None, "logprobs": {}} for _ in range(rows)]
    for chunk in client.completions.create(model="small", stream=True, extra_body=extra, **body):
        for choice in chunk.choices:
            row = found[choice.index]
            for name, values in choice.logprobs.model_dump().items() if choice.logprobs else ():
                row["logprobs"][name] = row["logprobs"].get(name, []) + values
            for at in choice.logprobs.text_offset or () if choice.logprobs else ():
                assert len(row["text"]) <= at <= len(row["text"]) + len(choice.text)
            row["text"] += choice.text
            row["finish_reason"] = choice.finish_reason or row["finish_reason"]
    return found


# --- prompts ---


def test_a_prompts_log_probabilities_add_up_to_what_evaluation_finds(server: Served) -> None:
    """Of a text its own tokens; with the end-of-text, as token ids, all that `score` counts."""
    tokenizer, decoder = server.generator.tokenizer, server.generator.decoder
    expected = score(decoder, tokenizer, datasets.Dataset.from_dict({"src_txt": PROMPTS})).nll
    ended = [[*tokenizer.encode_prompt(text), tokenizer.end_of_text_id] for text in PROMPTS]
    by_ids = scored(server, prompt=ended, max_tokens=0, echo=True, logprobs=0)
    by_text = scored(server, prompt=PROMPTS, max_tokens=0, echo=True, logprobs=0)
    for text, nll, ids, one in zip(PROMPTS, expected, by_ids, by_text, strict=True):
        values = ids["logprobs"]["token_logprobs"]
        assert values[0] is None  # before a text given as ids comes nothing
        assert -sum(values[1:]) == pytest.approx(nll, abs=1e-4)
        assert one["logprobs"]["token_logprobs"] == pytest.approx(values[1:-1], abs=1e-5)
        assert (one["text"], one["finish_reason"]) == (text, "length")
        alone = scored(server, prompt=text, max_tokens=0, echo=True, logprobs=0)[0]["logprobs"]
        assert alone["token_logprobs"] == pytest.approx(values[1:-1], abs=1e-5)


def test_a_prompts_tokens_are_spelt_and_found_in_its_text(server: Served) -> None:
    (row,) = scored(server, prompt="a驫春", max_tokens=0, echo=True, logprobs=2)
    found = row["logprobs"]
    assert found["tokens"] == ["a", "bytes:\\xe9", "bytes:\\xa9", "bytes:\\xab", "春"]
    assert found["text_offset"] == [0, 1, 1, 1, 2]
    for token, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert top[token] == value
        assert len(top) == 2 + (sorted(top.values())[-2] > value)  # the two likeliest, and the one that is there
        assert list(top.values())[:2] == sorted(top.values(), reverse=True)[:2]


def test_only_the_text_of_a_prompt_is_told_and_not_its_template(decoder: Any, tokenizer: Tokenizer) -> None:
    task = tokenizer.with_prompt_template("问：{src_txt}\n答：")
    first = len(task.prompt_parts[0])
    with served(decoder, task) as server:
        (row,) = scored(server, prompt="春花", max_tokens=0, echo=True, logprobs=1)
        ids = tokenizer.encode_prompt("问：春花\n答：")
        (whole,) = scored(server, prompt=ids, max_tokens=0, echo=True, logprobs=1)
    assert row["logprobs"]["tokens"] == ["春", "花"]
    assert row["logprobs"]["text_offset"] == [0, 1]
    assert row["logprobs"]["token_logprobs"] == pytest.approx(
        whole["logprobs"]["token_logprobs"][first : first + 2], abs=1e-5
    )


def test_offsets_are_those_of_the_prompt_even_where_a_tokenizer_loses_some_of_it() -> None:
    bert = load_tokenizer(ROOT / "tests" / "files" / "modelscope" / "base")
    text = "床 驫\n前明"
    with served(make_decoder(make_config(bert.vocab_size)), bert) as server:
        (row,) = scored(server, prompt=text, max_tokens=3, temperature=0, echo=True, logprobs=5)
        by_ids = scored(server, prompt=bert.encode_prompt(text), max_tokens=0, echo=True, logprobs=0)[0]
    found = row["logprobs"]
    prompt = len(bert.encode(text))
    for token, at in zip(found["tokens"][:prompt], found["text_offset"], strict=False):
        assert text.startswith(token, at) or token == "[UNK]"
    assert found["text_offset"][prompt] == len(text)
    assert all(value in top.values() for value, top in zip(found["token_logprobs"], found["top_logprobs"], strict=True))
    assert by_ids["text"] == bert.decode(bert.encode_prompt(text))
    assert len(by_ids["logprobs"]["tokens"]) == prompt + len(bert.start_ids)


def test_prompts_are_scored_beside_rows_that_are_written(server: Served) -> None:
    server.pace.seconds = 0.01
    expected = server.alone("春", max_new_tokens=60, seed=1)
    values = scored(server, prompt=PROMPTS[0], max_tokens=0, echo=True, logprobs=0)[0]["logprobs"]["token_logprobs"]
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(scored, server, prompt="春", max_tokens=60, seed=1)
        until(lambda: server.engine.running)
        found = scored(server, prompt=[PROMPTS[0]] * 3, max_tokens=0, echo=True, logprobs=0)
        assert not writing.done()
        assert writing.result()[0]["text"] == expected
    server.pace.seconds = 0
    for row in found:
        assert row["logprobs"]["token_logprobs"] == pytest.approx(values, abs=1e-5)


def test_usage_of_a_prompt_that_is_only_scored(server: Served) -> None:
    body = server.complete(prompt="春花", max_tokens=0, echo=True).json()
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    assert body["choices"][0] == {"index": 0, "text": "春花", "logprobs": None, "finish_reason": "length"}


# --- what is written ---

SAMPLED = {"max_tokens": 24, "seed": 4, "temperature": 0.8, "top_k": 30}


def test_what_is_written_has_the_models_own_log_probabilities(server: Served) -> None:
    """Whatever is done to them before a token is drawn."""
    plain = scored(server, prompt=PROMPTS, **SAMPLED)
    rows = scored(server, prompt=PROMPTS, logprobs=3, **SAMPLED)
    assert [row["text"] for row in rows] == [row["text"] for row in plain]
    tokenizer = server.generator.tokenizer
    for prompt, row in zip(PROMPTS, rows, strict=True):
        found = row["logprobs"]
        parameters = {"max_new_tokens": 24, "seed": 4, "temperature": 0.8, "top_k": 30}
        (written,) = server.generator.write_ids(
            [tokenizer.encode_prompt(prompt)], GenerationConfig.parse(parameters), logprobs=3
        )
        assert found["token_logprobs"] == pytest.approx([score.logprob for score in written.scores], abs=1e-4)
        ids = [*tokenizer.encode_prompt(prompt), *(score.token for score in written.scores)]
        with torch.no_grad():
            logits = server.generator.decoder(torch.tensor([ids]))[0].double().log_softmax(-1)
        first = len(ids) - len(written.scores)
        by_hand = [float(logits[at - 1, ids[at]]) for at in range(first, len(ids))]
        assert found["token_logprobs"] == pytest.approx(by_hand, abs=1e-4)
        for token, at in zip(found["tokens"], found["text_offset"], strict=True):
            assert token.startswith(("bytes:", "<|")) or row["text"].startswith(token, at)


@pytest.mark.parametrize(
    "parameters",
    [
        {"logprobs": 0},
        {"logprobs": 5, "echo": True},
        {"logprobs": 1, "echo": True, "max_tokens": 0},
        {"logprobs": 2, "echo": True, "max_tokens": 1},
    ],
)
def test_streams_are_whole_answers_in_pieces(server: Served, client: openai.OpenAI, parameters: dict[str, Any]) -> None:
    body = SAMPLED | parameters
    whole = scored(server, prompt=PROMPTS, **body)
    pieces = streamed(client, len(PROMPTS), prompt=PROMPTS, **body)
    for row, found in zip(whole, pieces, strict=True):
        assert found["text"] == row["text"]
        assert found["finish_reason"] == row["finish_reason"]
        for name in ("tokens", "text_offset"):
            assert found["logprobs"][name] == row["logprobs"][name]
        given = [value for value in found["logprobs"]["token_logprobs"] if value is not None]
        assert given == pytest.approx([v for v in row["logprobs"]["token_logprobs"] if v is not None], abs=1e-4)


def test_tokens_beyond_a_stop_text_are_not_told(server: Served, client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"prompt": "春", "temperature": 0, "max_tokens": 20, "logprobs": 1}
    (row,) = scored(server, **body)
    whole = [at for at, token in zip(row["logprobs"]["text_offset"], row["logprobs"]["tokens"], strict=True)]
    stop = row["text"][4:6]
    end = row["text"].index(stop)
    for found in (scored(server, stop=stop, **body)[0], streamed(client, 1, stop=stop, **body)[0]):
        assert (found["text"], found["finish_reason"]) == (row["text"][:end], "stop")
        assert found["logprobs"]["text_offset"] == [at for at in whole if at < end]


def test_the_end_of_a_text_is_told(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-evaluation-harness asks for one token after what it scores, and leaves the last of the list out."""
    tokenizer = server.generator.tokenizer
    ending = {str(tokenizer.end_of_text_id): 100}
    (row,) = scored(server, prompt="春花", max_tokens=1, echo=True, logprobs=1, temperature=0, logit_bias=ending)
    assert row["logprobs"]["tokens"] == ["春", "花", "<|endoftext|>"]
    assert row["logprobs"]["text_offset"] == [0, 1, 2]
    assert (row["text"], row["finish_reason"]) == ("春花", "stop")


# --- what is drawn ---


def test_openais_parameters_of_what_is_drawn(server: Served, client: openai.OpenAI) -> None:
    parameters: dict[str, Any] = {"presence_penalty": 1.5, "frequency_penalty": -0.5, "logit_bias": {"7": 3.0}}
    answer = client.completions.create(
        model="small", prompt="春", max_tokens=20, seed=2, extra_body={"min_p": 0.1}, **parameters
    )
    alone = server.alone("春", max_new_tokens=20, seed=2, min_p=0.1, **parameters)
    assert answer.choices[0].text == alone
    assert alone != server.alone("春", max_new_tokens=20, seed=2)
    nothing: dict[str, Any] = dict.fromkeys(("presence_penalty", "frequency_penalty", "logit_bias", "logprobs"))
    assert client.completions.create(model="small", prompt="春", seed=2, **nothing).choices[0].logprobs is None


def test_mlflows_protocol_has_no_mappings(server: Served) -> None:
    answer = server.post("/invocations", {"inputs": ["春"], "params": {"logit_bias": {"7": 1}}})
    assert answer.status_code == 400
    assert "'logit_bias' isn't known here; there is max_new_tokens" in answer.json()["message"]
    params = {"presence_penalty": 1.0, "min_p": 0.1, "seed": 2, "max_new_tokens": 9}
    answer = server.post("/invocations", {"inputs": ["春"], "params": params})
    assert answer.json() == {"predictions": [server.generator("春", **params)]}
