"""The whole way, as a user goes it: a registered model is served, its texts are rated, and rows are made of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Trace
from mlflow.tracing.client import TracingClient

from modules.config.loader import ConfigError, load_config
from modules.system.jsonl import read_jsonl
from modules.tokenizer.tokenizer import Tokenizer
from modules.tracking.models.exported_model import log_model
from modules.tracking.stage_run import connect
from pipelines.prepare import prepare
from pipelines.serve import serve
from tests.helpers.models import ROOT, make_config, make_decoder, save_model

KEY = "al1ce-k3y"


@contextmanager
def serving(store: Path, *arguments: str, said: list[str]) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "pipelines.serve", "port=0", "follow_seconds=0", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MOYUN_API_KEY": f"alice={KEY},bob=b0b-k3y"}
    with (store / "log").open("w") as log:
        started = subprocess.Popen(command, cwd=store, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    assert started.stdout
    try:
        while not (said and (found := re.search(r"is ready .*?(http://127\.0\.0\.1:\d+)/", said[-1]))):
            said.append(started.stdout.readline())
            assert said[-1], (store / "log").read_text()
        with httpx.Client(base_url=found[1], headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
            yield client
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 0
        said.append(started.stdout.read())
    finally:
        started.kill()
        started.wait()


def traces_in(experiment: str) -> list[Trace]:
    found = MlflowClient().get_experiment_by_name(experiment)
    assert found
    return list(TracingClient().search_traces(locations=[found.experiment_id], order_by=["timestamp_ms ASC"]))


@pytest.mark.server
def test_from_a_served_text_to_rows(store: Path, tokenizer: Tokenizer) -> None:
    connect(folder=store)
    with mlflow.start_run(experiment_id="0") as run:
        decoder = make_decoder(make_config(tokenizer.vocab_size))
        folder = save_model(store / "made", decoder, tokenizer, {"run_id": run.info.run_id})
        uri = log_model(folder)
    version = mlflow.register_model(uri, "poet")
    MlflowClient().set_registered_model_alias("poet", "champion", version.version)
    said: list[str] = []
    with serving(
        store, "model=models:/poet@champion", "traces=1", "tracking.experiment_name=served", said=said
    ) as client:
        ask: dict[str, Any] = {"prompt": "春眠不觉晓，", "max_tokens": 4, "seed": 1, "logit_bias": {"0": -100}}
        texts = [client.post("/v1/completions", json=ask | {"seed": seed}).json() for seed in (1, 2)]
        stream = client.post("/v1/completions", json=ask | {"stream": True}).text
        turns = [{"role": "user", "content": "白日依山尽，"}]
        chat = client.post("/v1/chat/completions", json={"messages": turns, "max_tokens": 4, "seed": 1}).json()
        client.post("/invocations", json={"inputs": {"src_txt": ["秋"]}, "params": {"max_new_tokens": 3}})
        ratings = [
            {"id": texts[0]["id"], "value": "up"},
            {"id": texts[1]["id"], "value": "down", "comment": "韵"},
            {"id": chat["id"], "value": "down", "correction": "黄河入海流。"},
        ]
        assert [client.post("/v1/feedback", json=rating).status_code for rating in ratings] == [200] * 3
        assert client.get("/card").json()["feedback"] is True
    assert "100% of the requests are kept as traces in experiment served of sqlite:" in said[0]
    assert "with the 2 named API keys of MOYUN_API_KEY" in "".join(said)
    assert (store / "log").read_text() == ""

    traces = traces_in("served")
    assert [trace.info.tags["moyun.endpoint"] for trace in traces] == [*["completions"] * 3, "chat", "invocations"]
    for trace in traces:
        assert trace.info.trace_metadata["mlflow.modelId"] == uri.removeprefix("models:/")
        assert trace.info.tags["moyun.version"] == str(version.version)
        assert trace.info.tags["moyun.run_id"] == run.info.run_id
        assert trace.info.tags["moyun.outcome"] == "ok"
        assert KEY not in str(trace.to_dict())
    first = traces[0].data.spans[0]
    assert traces[0].info.client_request_id == texts[0]["id"]
    assert first.inputs == {"prompt": "春眠不觉晓，"}
    assert first.outputs["choices"][0]["text"] == texts[0]["choices"][0]["text"]
    assert first.attributes["parameters"]["seed"] == 1
    assert traces[0].info.token_usage == {
        "input_tokens": texts[0]["usage"]["prompt_tokens"],
        "output_tokens": texts[0]["usage"]["completion_tokens"],
        "total_tokens": texts[0]["usage"]["total_tokens"],
    }
    assert 0 < first.attributes["time_to_first_text_seconds"] <= (first.end_time_ns - first.start_time_ns) / 1e9
    assert traces[2].info.client_request_id in stream
    assert traces[2].data.spans[0].outputs["choices"][0]["text"] == texts[0]["choices"][0]["text"]
    assert traces[3].data.spans[0].inputs == {"messages": turns}
    assert traces[4].data.spans[0].inputs == {"prompt": "秋"}

    given = ["source=traces", "experiment=served", "tracking.log_system_metrics=false"]
    made = prepare(load_config("prepare", [*given, "validation_fraction=0", "test_fraction=0"]))
    liked = texts[0]["choices"][0]["text"]
    disliked = texts[1]["choices"][0]["text"]
    rows = list(read_jsonl(made.folder / "train.jsonl.gz"))
    assert rows == [
        {"src_txt": "春眠不觉晓，", "tgt_txt": liked, "ratings": ["up"], "rejected": [disliked]},
        {
            "src_txt": "白日依山尽，",
            "tgt_txt": "黄河入海流。",
            "ratings": ["corrected"],
            "rejected": [chat["choices"][0]["message"]["content"]],
        },
    ]


def test_without_a_store_that_can_be_used_nothing_is_served(store: Path, tokenizer: Tokenizer) -> None:
    folder = save_model(store / "model", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})
    command = [sys.executable, "-m", "pipelines.serve", f"model={folder}", "port=0", "traces=1"]
    command.append("tracking.tracking_uri=http://127.0.0.1:9")
    found = subprocess.run(
        command, cwd=store, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 1
    assert "the tracking store http://127.0.0.1:9 can't be used: connection refused" in found.stderr


def test_a_key_that_cannot_be_used_is_refused_before_the_store_is_asked(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOYUN_API_KEY", "")
    with pytest.raises(ValueError, match="which can't be an API key"):
        serve(load_config("serve", [f"model={store}", "port=0", "traces=1"]))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan"])
def test_a_share_is_from_none_to_all(share: str) -> None:
    with pytest.raises(ConfigError, match=r"traces .* must be from 0 \(none\) to 1 \(all requests\)"):
        load_config("serve", [f"traces={share}"])
