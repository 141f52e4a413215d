"""A file of rows in, a file with answers out: what stands in it, and what the run has of it."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from modules.data.quarantine import DataError
from modules.tokenizer.tokenizer import Tokenizer
from modules.tracking.models.exported_model import log_model
from modules.tracking.stage_run import connect
from pipelines import pipeline
from tests.helpers.predictions import TEXTS, alone, jsonl, read, run, small_model


@pytest.fixture
def model(store: Path, tokenizer: Tokenizer) -> Path:
    return small_model(store / "model", tokenizer)


# --- what stands in the target ---


def test_each_row_has_the_text_that_it_has_alone_in_the_rows_order(
    model: Path, store: Path, small_windows: None
) -> None:
    jsonl(store / "rows.jsonl", [{"id": number, "src_txt": text} for number, text in enumerate(TEXTS)])
    found = run("source=rows.jsonl", "target=out.jsonl", "max_batch_tokens=40")
    rows = read(store / "out.jsonl")
    assert [row["id"] for row in rows] == list(range(len(TEXTS)))
    assert [row["text"] for row in rows] == [alone(text) for text in TEXTS]
    assert all(row["text"].startswith(row["src_txt"]) for row in rows)
    assert {row["error"] for row in rows} == {None}
    assert {type(row["stopped"]) for row in rows} == {bool}
    assert (found.written.rows, found.written.errors) == (len(TEXTS), 0)
    assert found.written.samples[0] == {"prompt": TEXTS[0], "text": rows[0]["text"], "stopped": rows[0]["stopped"]}
    assert not list(store.glob(".out*"))


def test_a_model_with_a_template_answers_and_full_text_can_be_asked_for(
    model: Path, store: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tokenizer.with_prompt_template("问{src_txt}答")
    small_model(store / "tuned", asked)
    jsonl(store / "rows.jsonl", [{"src_txt": "春"}])
    greedy = ["source=rows.jsonl", "model=tuned", "temperature=0"]
    run(*greedy, "target=a.jsonl")
    assert "answers, by its template '问{src_txt}答'" in capsys.readouterr().out
    run(*greedy, "target=b.jsonl", "return_full_text=true")
    (answer,), (full,) = read(store / "a.jsonl"), read(store / "b.jsonl")
    assert answer["text"] == pipeline(model="tuned")("春", max_new_tokens=6, temperature=0)["text"]
    assert full["text"] == "春" + answer["text"]
    run("source=rows.jsonl", "target=c.jsonl", "temperature=0", "return_full_text=false")
    assert "continues texts: it has no prompt template" in capsys.readouterr().out
    assert "春" + read(store / "c.jsonl")[0]["text"] == alone("春", temperature=0)


CELLS = ["a,b", '"q"', "line\nbreak", "cr\rin", "", " blank ", "007", "NA"]


@pytest.fixture
def sources(store: Path) -> dict[str, Path]:
    """The same rows three times over: awkward texts, numbers, a missing value."""
    rows = [{"src_txt": text, "note": cell} for text, cell in zip(TEXTS, CELLS, strict=True)]
    typed: list[dict[str, Any]] = [
        {**row, "n": number, "x": number / 2, "yes": number > 3, "tags": ["一", row["note"]] if number else None}
        for number, row in enumerate(rows)
    ]
    with (store / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["src_txt", "note"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(typed), store / "rows.parquet")
    return {
        "csv": store / "rows.csv",
        "jsonl": jsonl(store / "rows.jsonl", typed),
        "parquet": store / "rows.parquet",
    }


def as_in_csv(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("given", ["csv", "jsonl", "parquet"])
def test_every_column_is_kept_from_every_format_to_every_other(
    model: Path, store: Path, sources: dict[str, Path], given: str, ending: str
) -> None:
    run(f"source={sources[given]}", f"target=out.{ending}")
    before, after = read(sources[given]), read(store / f"out.{ending}")
    texts = [alone(text) for text in TEXTS]
    assert [row.pop("text") for row in after] == texts
    if ending == "csv":
        assert {row.pop("stopped") for row in after} <= {"true", "false"}
        assert {row.pop("error") for row in after} == {""}
        before = [{name: as_in_csv(value) for name, value in row.items()} for row in before]
    else:
        assert {type(row.pop("stopped")) for row in after} == {bool}
        assert {row.pop("error") for row in after} == {None}
    if (given, ending) == ("jsonl", "parquet"):  # where lists have no type of their own
        before = [{**row, "tags": row["tags"] and as_in_csv(row["tags"])} for row in before]
    assert after == before
    if ending == "parquet":
        types = {"text": pa.string(), "stopped": pa.bool_(), "error": pa.string()}
        types |= {} if given == "csv" else {"n": pa.int64(), "x": pa.float64(), "yes": pa.bool_()}
        kept = pq.read_schema(store / "out.parquet")
        assert {name: kept.field(name).type for name in types} == types
    run(f"source=out.{ending}", "target=again.jsonl", "column=t", "stopped_column=s", "error_column=e")  # readable
    assert [row["t"] for row in read(store / "again.jsonl")] == texts


def test_parquet_keeps_its_types_and_numbers_too_large_for_a_float(model: Path, store: Path) -> None:
    kinds = {"d": pa.date32(), "t": pa.timestamp("us"), "c": pa.dictionary(pa.int32(), pa.string()), "f": pa.float32()}
    values = {"d": [datetime.date(2026, 1, 2), None], "t": [None, datetime.datetime(2026, 1, 2, 3)], "c": ["x", "y"]}
    arrays = {name: pa.array(values.get(name, [0.5, None]), kind) for name, kind in kinds.items()}
    pq.write_table(pa.table({"src_txt": ["春", "秋"], **arrays}), store / "rows.parquet")
    run("source=rows.parquet", "target=out.parquet")
    after = pq.read_table(store / "out.parquet")
    assert {name: after.schema.field(name).type for name in kinds} == kinds
    assert after.select(list(kinds)).to_pylist() == pa.table(arrays).to_pylist()
    long = 2**53 + 1
    rows = [{"src_txt": "春", "id": long, "mixed": long}, {"src_txt": "秋", "id": 1, "mixed": 0.5}]
    jsonl(store / "rows.jsonl", rows)
    run("source=rows.jsonl", "target=long.parquet")
    assert [(row["id"], row["mixed"]) for row in read(store / "long.parquet")] == [(long, str(long)), (1, "0.5")]


def test_rows_of_different_columns_and_half_characters_stay_as_they_are(model: Path, store: Path) -> None:
    lines = ['{"src_txt": "春", "a": 1}', '{"b": "\\ud800", "src_txt": "秋", "c": {"d": [1.5, null]}}']
    (store / "rows.jsonl").write_text("\n".join(lines))
    run("source=rows.jsonl", "target=out.jsonl")
    before = [json.loads(line) for line in lines]
    after = read(store / "out.jsonl")
    assert [{name: row[name] for name in was} for row, was in zip(after, before, strict=True)] == before
    assert [sorted(row) for row in after] == [sorted({*was, "text", "stopped", "error"}) for was in before]
    run("source=rows.jsonl", "target=out.csv")
    assert [(row["a"], row["b"], row["c"]) for row in read(store / "out.csv")] == [
        ("1", "", ""),
        ("", "?", '{"d": [1.5, null]}'),
    ]


def test_a_row_that_cannot_be_answered_says_why_and_ends_nothing(
    model: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"src_txt": "春"}, {"src_txt": ""}, {"src_txt": None}, {"other": 1}, {"src_txt": 5}, {"src_txt": "山" * 96}]
    jsonl(store / "rows.jsonl", [*rows, {"src_txt": "秋"}])
    found = run("source=rows.jsonl", "target=out.jsonl")
    after = read(store / "out.jsonl")
    assert [row["error"] for row in after] == [
        None,
        "src_txt is empty",
        "src_txt is null, not a string",
        "src_txt is missing",
        "src_txt is a number, not a string (5)",
        "src_txt comes to 97 tokens, and the model has 96 positions for prompt and answer: shorten it",
        None,
    ]
    assert [row["text"] for row in after] == [alone("春"), *[None] * 5, alone("秋")]
    assert [row["stopped"] for row in after[1:6]] == [None] * 5
    assert found.written.errors == 5
    logged = MlflowClient().get_run(found.run_id).data.metrics
    assert (logged["predict/rows"], logged["predict/errors"]) == (7, 5)
    printed = capsys.readouterr().out
    assert "without an answer" in printed
    assert "rows.jsonl:2: src_txt is empty" in printed
    (store / "rows.csv").write_text("question,src\n,1\n")
    run("source=rows.csv", "target=none.csv", "columns.question=src_txt")  # not one with an answer
    assert read(store / "none.csv") == [
        {"question": "", "src": "1", "text": "", "stopped": "", "error": "question is empty"}
    ]


@pytest.mark.parametrize("name", ["rows.tsv", "rows.txt", "rows.json", "rows.csv.gz", "folder"])
def test_what_moyuns_own_readers_take(model: Path, store: Path, name: str) -> None:
    content = {
        "rows.tsv": "src_txt\tn\n春\t1\n\n秋\t2\n",
        "rows.txt": "春\n\n秋\n",
        "rows.json": json.dumps({"data": [{"src_txt": "春", "n": 1}, {"src_txt": "秋", "n": 2}]}),
        "rows.csv.gz": gzip.compress("\ufeffsrc_txt,n\r\n春,1\r\n秋,2\r\n".encode()),
    }
    if name == "folder":
        (store / name).mkdir()
        for number, text in enumerate("春秋"):
            jsonl(store / name / f"part-{number}.jsonl", [{"src_txt": text, "n": number}])
    else:
        given = content[name]
        (store / name).write_bytes(given if isinstance(given, bytes) else given.encode())
    target = {"rows.tsv": "rows.answers.tsv", "rows.csv.gz": "rows.answers.csv", "folder": "folder.answers.jsonl"}
    run(f"source={name}")
    rows = read(store / target.get(name, "rows.answers.jsonl"))
    assert [row["src_txt"] for row in rows] == ["春", "秋"]
    assert [row["text"] for row in rows] == [alone("春"), alone("秋")]


def test_a_target_without_an_ending_is_in_the_sources_format(model: Path, store: Path) -> None:
    (store / "rows.csv").write_text("src_txt\n春\n")
    run("source=rows.csv", "target=deep/down/answers")
    assert (store / "deep" / "down" / "answers").read_text().startswith("src_txt,text,stopped,error\n春,")


def test_a_split_is_named_where_there_are_several(model: Path, store: Path) -> None:
    for split in ("train", "test"):
        (store / "data").mkdir(exist_ok=True)
        jsonl(store / "data" / f"{split}.jsonl", [{"src_txt": "春", "of": split}])
    with pytest.raises(DataError, match="source=data has splits: say whose rows to answer, split=test"):
        run("source=data", "target=out.jsonl")
    run("source=data", "target=out.jsonl", "split=test")
    assert [row["of"] for row in read(store / "out.jsonl")] == ["test"]
    datasets.Dataset.from_dict({"src_txt": ["春"], "n": [3]}).save_to_disk(str(store / "saved"))
    run("source=saved", "target=saved.parquet")
    assert [row["n"] for row in read(store / "saved.parquet")] == [3]


# --- in MLflow ---


def test_the_run_has_the_model_the_rows_and_where_the_answers_are(model: Path, store: Path) -> None:
    jsonl(store / "rows.jsonl", [{"src_txt": text} for text in TEXTS])
    connect()
    mlflow.set_experiment("moyun")
    with mlflow.start_run():
        uri = log_model(model)
    found = run("source=rows.jsonl", "target=out.csv", "log_file=true", f"model={uri}")
    client = MlflowClient()
    record = client.get_run(found.run_id)
    assert (record.data.tags["stage"], record.data.tags["mode"]) == ("predict", "continues texts")
    assert record.data.tags["output"] == str(store / "out.csv")
    assert record.data.tags["sha256.output"] == found.written.digest
    assert "| predict/rows | 8 |" in record.data.tags["mlflow.note.content"]
    metrics = record.data.metrics
    assert metrics["predict/rows"] == 8
    assert metrics["predict/tokens"] == found.written.tokens > 0
    assert metrics["predict/stopped"] == sum(row["stopped"] == "true" for row in read(store / "out.csv"))
    assert metrics["predict/tokens_per_second"] > 0
    (rows,) = record.inputs.dataset_inputs
    assert rows.dataset.name == "rows.jsonl-predict"
    assert json.loads(rows.dataset.profile) == {"num_rows": 8}
    table = mlflow.load_table("samples.json", [found.run_id])
    assert table["prompt"].tolist() == TEXTS[:3]
    copy = mlflow.artifacts.download_artifacts(f"runs:/{found.run_id}/out.csv")
    assert Path(copy).read_bytes() == (store / "out.csv").read_bytes()
    assert [used.model_id for used in record.inputs.model_inputs] == [uri.removeprefix("models:/")]


def test_the_same_rows_have_one_fingerprint_whatever_was_done_with_them(model: Path, store: Path) -> None:
    jsonl(store / "rows.jsonl", [{"src_txt": "春"}])
    digests = []
    for target, text in (("a.jsonl", "春"), ("b.jsonl", "春"), ("c.jsonl", "秋")):
        jsonl(store / "rows.jsonl", [{"src_txt": text}])
        (rows,) = MlflowClient().get_run(run("source=rows.jsonl", f"target={target}").run_id).inputs.dataset_inputs
        digests.append(rows.dataset.digest)
    assert digests[0] == digests[1] != digests[2]
