"""What MLflow is given reaches the model as it was given: from Python, over HTTP, from files, in its evaluation."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.exceptions import MlflowException
from mlflow.models import make_metric
from mlflow.pyfunc import PyFuncModel, scoring_server

from modules.config.generation import LimitsConfig
from modules.inference.server.protocols.mlflow_protocol import parse_invocation
from modules.inference.server.requests import RequestError, check_text
from modules.inference.text_generator import TextGenerator
from modules.tokenizer.tokenizer import Tokenizer, train_tokenizer
from modules.tracking.models.exported_model import log_model
from modules.tracking.stage_run import connect
from tests.helpers.models import make_config, make_decoder, save_model

SHORT = {"max_new_tokens": 4, "temperature": 0.0}
TEXTS = ["白日依山尽，", "春"]


@pytest.fixture(scope="module")
def tokens() -> Tokenizer:
    return train_tokenizer(["白日依山尽，黄河入海流。", "春眠不觉晓，处处闻啼鸟。", "5 NA"] * 3)


@pytest.fixture(scope="module")
def generator(tokens: Tokenizer) -> TextGenerator:
    return TextGenerator(make_decoder(make_config(tokens.vocab_size)), tokens)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose store is this process's."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
        connect(folder=folder)
        yield folder


@pytest.fixture(scope="module")
def folder(place: Path, generator: TextGenerator, tokens: Tokenizer) -> Path:
    """The model as the registry hands it out."""
    saved = save_model(place / "model", generator.decoder, tokens, {})
    with mlflow.start_run(experiment_id="0"):
        return Path(mlflow.artifacts.download_artifacts(log_model(saved)))


@pytest.fixture(scope="module")
def model(folder: Path) -> PyFuncModel:
    return mlflow.pyfunc.load_model(str(folder))


@pytest.fixture(scope="module")
def client(model: PyFuncModel) -> Iterator[TestClient]:
    """MLflow's own scoring server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # which it sets by itself
        with TestClient(scoring_server.init(model)) as client:
            yield client


# --- from Python ---


@pytest.mark.parametrize(
    "given",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS),
        pd.Series(TEXTS, name="prompt"),
        pd.DataFrame(TEXTS),
        pd.DataFrame({"tgt_txt": ["a", "b"], "src_txt": TEXTS, "id": [1, 2]}),
        pd.DataFrame({"src_txt": pd.Categorical(TEXTS)}),
        [{"src_txt": text, "id": 1} for text in TEXTS],
        {"src_txt": TEXTS, "id": [1, 2]},
        {"src_txt": np.array(TEXTS)},
    ],
    ids=lambda given: type(given).__name__,
)
def test_texts_in_any_form(model: PyFuncModel, generator: TextGenerator, given: Any) -> None:
    answers = model.predict(given, params=SHORT)
    assert answers.to_dict("records") == generator(TEXTS, **SHORT)


def test_one_row_or_none(model: PyFuncModel, generator: TextGenerator) -> None:
    one = [generator("春", **SHORT)]
    for given in ("春", ["春"], {"src_txt": "春"}, pd.DataFrame({"src_txt": ["春"]}), np.str_("春")):
        assert model.predict(given, params=SHORT).to_dict("records") == one
    for given in ([], {"src_txt": []}, pd.DataFrame({"src_txt": []}), pd.Series([], dtype=str)):
        answers = model.predict(given, params=SHORT)
        assert (list(answers.columns), len(answers)) == (["text"], 0)


def test_a_tables_index_is_kept(model: PyFuncModel) -> None:
    frame = pd.DataFrame({"src_txt": TEXTS}, index=[7, 3])
    assert list(model.predict(frame, params=SHORT).index) == [7, 3]


def test_many_rows_are_continued_a_few_at_a_time(
    model: PyFuncModel, generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    whole = TextGenerator.write

    def noting(self: TextGenerator, texts: list[str], *arguments: Any) -> Any:
        sizes.append(len(texts))
        return whole(self, texts, *arguments)

    monkeypatch.setattr(TextGenerator, "write", noting)
    rows = TEXTS * 35
    params = {"max_new_tokens": 2, "seed": 3}
    assert model.predict(rows, params=params).to_dict("records") == [generator(text, **params) for text in rows]
    assert sizes[:3] == [32, 32, 6]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "inputs must have the column src_txt"),
        (None, "inputs must have the column src_txt"),
        (["春", 5], "src_txt of row 1 must be a text, not 5"),
        (np.array([1, 2]), "src_txt of row 0 must be a text, not 1"),
        (pd.DataFrame({"src_txt": [True]}), "src_txt of row 0 must be a text, not True"),
        (pd.DataFrame({"src_txt": ["春", None]}), "src_txt of row 1 must be a text, not"),
        (pd.DataFrame({"text": ["春"]}), r"inputs must have the column src_txt, and these have \['text'\]"),
        (pd.DataFrame({0: ["春"], 1: ["夏"]}), r"inputs must have the column src_txt, and these have \[0, 1\]"),
        ([{"text": "春"}], "inputs must have the column src_txt"),
    ],
)
def test_what_is_no_text_is_refused_and_never_made_one(model: PyFuncModel, given: Any, message: str) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        model.predict(given, params=SHORT)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_parameters_reach_the_model_as_they_are(model: PyFuncModel, generator: TextGenerator) -> None:
    (whole,) = (row["text"] for row in generator(["白日"], max_new_tokens=8, temperature=0.0))
    for stop in (whole[4], [whole[4]]):
        answer = model.predict("白日", params={"max_new_tokens": 8, "temperature": 0, "stop": stop})
        assert answer["text"][0] == whole[: whole.index(whole[4], 2)]
    for params, message in (
        ({"max_tokens": 4}, "^'max_tokens' isn't known here; there is max_new_tokens, "),
        ({"max_new_tokens": "4"}, "^max_new_tokens must be a whole number, not '4'"),
        ({"max_new_tokens": 2.0}, "^max_new_tokens must be a whole number, not 2.0"),
        ({"top_p": None}, "^top_p must not be null"),
        (["max_new_tokens"], "^params must be an object"),
    ):
        with pytest.raises(MlflowException, match=message):
            model.predict("春", params=params)  # type: ignore[arg-type]


def test_other_models_are_served_as_ever(place: Path, model: PyFuncModel, tmp_path: Path) -> None:
    class Echo(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[str]:
            return [*model_input["a"], *(params or {})]

    example = (pd.DataFrame({"a": ["x"]}), {"k": 1})
    signature = mlflow.models.infer_signature(*example[:1], ["x"], example[1])
    mlflow.pyfunc.save_model(tmp_path / "echo", python_model=Echo(), signature=signature, pip_requirements=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
        echo = mlflow.pyfunc.load_model(str(tmp_path / "echo"))
    assert echo.predict(pd.DataFrame({"a": ["y"]}), params={"k": 2, "unknown": 3}) == ["y", "k"]


# --- in MLflow's evaluation ---


def test_mlflow_evaluates_it(folder: Path, generator: TextGenerator) -> None:
    rows = pd.DataFrame({"author": ["李白", "王之涣"], "src_txt": TEXTS, "tgt_txt": ["甲", "乙"]}, index=[4, 2])
    seen: list[list[str]] = []

    def characters(predictions: pd.Series, targets: pd.Series) -> float:
        seen.append(list(predictions))
        return float(sum(map(len, predictions)))

    metric = make_metric(eval_fn=characters, greater_is_better=True, name="characters")
    with mlflow.start_run(experiment_id="0"):
        result = mlflow.models.evaluate(model=str(folder), data=rows, targets="tgt_txt", extra_metrics=[metric])
    expected = [row["text"] for row in generator(TEXTS, temperature=1.0)]
    assert [len(texts) for texts in seen][-1] == 2
    assert result.metrics["characters"] == sum(map(len, seen[-1]))
    assert [text[:1] for text in seen[-1]] == [text[:1] for text in expected]


# --- over HTTP: as our own server has it ---

BODIES: list[Any] = [
    {"inputs": {"src_txt": TEXTS}},
    {"inputs": {"src_txt": "春"}},
    {"inputs": {"src_txt": TEXTS, "id": [1, 2]}},
    {"inputs": [{"src_txt": text} for text in TEXTS]},
    {"inputs": TEXTS},
    {"inputs": "春"},
    {"instances": TEXTS},
    {"instances": [{"src_txt": text} for text in TEXTS]},
    {"instances": [{"src_txt": "春"}, {"src_txt": 5}]},
    {"instances": {"src_txt": ["春", 5.5]}},
    {"dataframe_records": [{"id": 1, "src_txt": text} for text in TEXTS]},
    {"dataframe_records": [{"src_txt": "春"}, {"src_txt": None}]},
    {"dataframe_records": [{"src_txt": "春"}, {}]},
    {"dataframe_split": {"columns": ["id", "src_txt"], "data": [[1, "春"]]}},
    {"dataframe_split": {"columns": ["src_txt"], "data": [["春"], [5]]}},
    {"dataframe_split": {"columns": ["text"], "data": [["春"]]}},
    {"inputs": {"src_txt": ["春", 5]}},
    {"inputs": ["春", True]},
    {"inputs": {"src_txt": [["春"]]}},
    {"inputs": {"src_txt": [{"src_txt": "春"}]}},
    {"inputs": {"text": ["春"]}},
    {"prompt": "春"},
    {"inputs": ["春"], "instances": ["春"]},
    {"inputs": ["春"], "max_tokens": 5},
    {"inputs": ["春"], "params": {"max_tokens": 5}},
    {"inputs": ["春"], "params": {"stop": "。"}},
    {"inputs": ["春"], "params": {"stop": ["。", 5]}},
    {"inputs": ["春"], "params": {"temperature": "0.5"}},
    {"inputs": ["春"], "params": [1]},
    {"inputs": ["春"], "params": None},
    {},
    [],
]


@pytest.mark.parametrize("body", BODIES, ids=json.dumps)
def test_both_servers_take_and_refuse_the_same(client: TestClient, generator: TextGenerator, body: Any) -> None:
    try:
        request = parse_invocation(body, LimitsConfig(), full=True) if isinstance(body, dict) else None
        texts = request.prompts if request else [0]
        for text in texts:
            check_text("src_txt", text)
    except RequestError:
        texts = []
    if isinstance(body, dict) and isinstance(body.get("params", {}), dict):
        body = body | {"params": SHORT | body.get("params", {})}
    answer = client.post("/invocations", json=body)
    if not texts or texts == [0]:
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
        assert "stack_trace" not in answer.json()
    elif body["params"] is None:
        assert answer.status_code == 200
    else:
        assert answer.json() == {"predictions": generator(texts, **body["params"])}


def test_csv(client: TestClient, generator: TextGenerator) -> None:
    rows = pd.DataFrame({"id": [1, 2, 3, 4], "src_txt": ["白日，\n依山", "5", "NA", ""]})
    answer = client.post("/invocations", content=rows.to_csv(index=False), headers={"Content-Type": "text/csv"})
    assert [row["text"][: len(text)] for row, text in zip(answer.json()["predictions"], rows.src_txt, strict=True)] == [
        *rows.src_txt
    ]
    refused = client.post("/invocations", content="text\n春\n", headers={"Content-Type": "text/csv; charset=utf-8"})
    assert (refused.status_code, refused.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert "src_txt" in refused.json()["message"]
    parquet = io.BytesIO()
    rows.to_parquet(parquet)
    kind = {"Content-Type": "application/vnd.apache.parquet"}
    assert len(client.post("/invocations", content=parquet.getvalue(), headers=kind).json()["predictions"]) == 4


@pytest.mark.server
def test_mlflow_models_predict(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,src_txt\n1,春\n2,白日\n", encoding="utf-8")
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", str(folder), "--env-manager", "local"]
    command += ["-i", "rows.csv", "-t", "csv", "-o", "out.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    texts = [row["text"] for row in json.loads((tmp_path / "out.json").read_text())["predictions"]]
    assert (len(texts), texts[0][:1], texts[1][:2]) == (2, "春", "白日")
