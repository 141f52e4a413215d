"""A file of rows in, a file with answers out: what is kept, what is refused, and how it goes on."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from modules.config.loader import ConfigError, load_config
from modules.data.quarantine import DataError
from modules.inference.prediction import answering
from modules.inference.prediction.journal import Journal
from modules.inference.text_generator import TextGenerator
from modules.system.process_locks import take_lock
from modules.system.signals import Stopped
from modules.tokenizer.tokenizer import Tokenizer
from modules.tracking.models.exported_model import log_model
from modules.tracking.stage_run import connect
from pipelines import pipeline
from pipelines.predict import PredictResult, predict
from tests.helpers.models import make_config, make_decoder, save_model
from tests.tracking.test_tracking import all_runs

QUIET = ["tracking.log_system_metrics=false", "max_new_tokens=6", "model=model"]
TEXTS = ["白日依山尽", "春", "床前明月光，疑是地上霜。", "山", "处处闻啼鸟", "花落知多少，", "水", "夜来风雨声"]


@pytest.fixture
def model(store: Path, tokenizer: Tokenizer) -> Path:
    return save_model(store / "model", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "WINDOW_ROWS", 3)


def run(*arguments: object) -> PredictResult:
    return predict(load_config("predict", [*QUIET, *map(str, arguments)]))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return found
    text = path.read_bytes().decode()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ","))


def alone(text: str, **parameters: Any) -> str:
    answer: str = pipeline(model="model")(text, max_new_tokens=6, top_p=0.9, seed=42, **parameters)["text"]
    return answer


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
    save_model(store / "tuned", make_decoder(make_config(tokenizer.vocab_size)), asked, {})
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


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("given", ["csv", "jsonl", "parquet"])
def test_every_column_is_kept_from_every_format_to_every_other(
    model: Path, store: Path, sources: dict[str, Path], given: str, ending: str
) -> None:
    run(f"source={sources[given]}", f"target=out.{ending}")
    before, after = read(sources[given]), read(store / f"out.{ending}")
    texts = [alone(text) for text in TEXTS]
    assert [row.pop("text") for row in after] == texts
    if ending in ("csv", "tsv"):
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
    target = {"rows.tsv": "rows.answers.tsv", "rows.csv.gz": "rows.answers.csv", "folder": "out.csv"}
    run(f"source={name}", *(["target=out.csv"] if name == "folder" else []))
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


# --- what is refused, before there is a run or a file ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["source=nowhere.csv"], "nowhere.csv"),
        (["source=rows.csv", "columns.a=src_txt"], "has no column 'a'"),
        (["source=other.csv"], "say which one holds the text with columns.YOUR_COLUMN=src_txt"),
        (["source=rows.csv", "column=n"], "has a column 'n' already.* give column=NAME"),
        (["source=rows.csv", "error_column=n"], "give error_column=NAME"),
        (["source=rows.csv", "model=nowhere"], "model=nowhere: no such model folder"),
        (["source=rows.csv", "target=rows.csv", "force=true"], "target=rows.csv is read as source"),
        (["source=rows.csv", "target=model"], "target=model is a folder"),
        (["source=broken.jsonl"], "(?s)1 bad row.*broken.jsonl:2: invalid JSON.*Correct or delete"),
        (["source=ragged.csv"], "ragged.csv:3: 3 values for 2 columns"),
        (["source=twice.csv"], r"duplicate columns \['n'\]"),
        (["source=empty.csv"], "has no rows"),
    ],
)
def test_what_cannot_be_done_is_refused_before_work(
    arguments: list[str], message: str, model: Path, store: Path
) -> None:
    contents = {
        "rows.csv": "src_txt,n\n春,1\n",
        "other.csv": "question,n\n春,1\n",
        "broken.jsonl": '{"src_txt": "春"}\n{"src_txt"\n',
        "ragged.csv": "src_txt,n\n春,1\n春,1,2\n",
        "twice.csv": "src_txt,n,n\n春,1,2\n",
        "empty.csv": "src_txt,n\n",
    }
    for name, content in contents.items():
        (store / name).write_text(content)
    before = sorted(store.rglob("*"))
    with pytest.raises(ValueError, match=message):
        run(*arguments)
    assert all_runs() == []
    assert [path for path in sorted(store.rglob("*")) if path not in before and "outputs" not in path.parts] == []


def test_a_source_may_have_a_column_that_training_would_take_for_the_target(model: Path, store: Path) -> None:
    jsonl(store / "rows.jsonl", [{"src_txt": "春", "target": "x", "Tgt_Txt": "y"}])
    run("source=rows.jsonl")
    assert [(row["target"], row["Tgt_Txt"]) for row in read(store / "rows.answers.jsonl")] == [("x", "y")]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["source=a.csv", "target=b.xlsx"], "target=b.xlsx: must end in one of .csv, .tsv, .jsonl, .ndjson, .parquet"),
        (["source=[a.csv,b.csv]"], "target must be given with source=[a.csv,b.csv]"),
        (["source=folder"], "target must be given with source=folder"),
        (["source=a.csv", "columns.b=tgt_txt"], "columns.b=tgt_txt: must be src_txt"),
        (["source=a.csv", "column="], None),
        (["source=a.csv", "column=error"], "column=error: column, stopped_column, error_column must be three"),
        (["source=a.csv", "max_batch_tokens=0"], "max_batch_tokens (0) must be at least 1"),
        (["source=a.csv", "generation.top_p=2"], "generation.top_p (2.0) must be"),
        ([], "source must be given"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments: list[str], complaint: str | None) -> None:
    if complaint is None:
        load_config("predict", arguments)  # an empty value counts as not given
        return
    with pytest.raises(ConfigError) as caught:
        load_config("predict", arguments)
    assert any(complaint in said for said in caught.value.complaints), caught.value.complaints


def test_the_seed_is_the_one_that_texts_are_drawn_with() -> None:
    assert load_config("predict", ["source=a.csv", "seed=7"]).generation.seed == 7
    assert load_config("predict", ["source=a.csv", "generation.seed=5", "temperature=0"]).generation.seed == 5


def test_a_dry_run_leaves_nothing(model: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonl(store / "rows.jsonl", [{"src_txt": "春"}])
    before = sorted(store.rglob("*"))
    assert run("source=rows.jsonl", "dry_run=true").run_id == ""
    assert sorted(store.rglob("*")) == before
    assert "1 of rows.jsonl" in capsys.readouterr().out


# --- interrupted, and gone on ---


class Killed(BaseException):
    """Ends the process in a test as SIGKILL would, with nothing cleaned up but locks."""


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The next attempt ends after so many batches; 0: none more does."""
    original = TextGenerator.write_ids

    def set_limit(batches: int) -> None:
        calls = iter(range(batches))

        def write_ids(self: TextGenerator, *arguments: Any) -> Any:
            if batches and next(calls, None) is None:
                raise Killed
            return original(self, *arguments)

        monkeypatch.setattr(TextGenerator, "write_ids", write_ids)

    return set_limit


@pytest.fixture
def rows(model: Path, store: Path, small_windows: None) -> Path:
    return jsonl(store / "rows.jsonl", [{"src_txt": text, "n": n} for n, text in enumerate([*TEXTS, ""] * 2)])


FEW = ["source=rows.jsonl", "max_batch_tokens=30"]


@pytest.mark.parametrize("batches", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("torn", [b"", b'[17, "half of a li', b"\0\0\0\0"])
def test_an_interrupted_attempt_is_gone_on_with_and_the_file_is_the_same(
    rows: Path, store: Path, killed_after: Callable[[int], None], batches: int, torn: bytes
) -> None:
    run(*FEW, "target=whole.jsonl")
    killed_after(batches)
    with pytest.raises(Killed):
        run(*FEW, "target=out.jsonl")
    assert not (store / "out.jsonl").exists()
    journal = Journal(store / "out.jsonl")
    with journal.answers.open("ab") as stream:
        stream.write(torn)
    answered = {row for row, _, _ in journal.lines()}
    asked: list[int] = []
    killed_after(0)
    original = TextGenerator.write_ids

    def counting(self: TextGenerator, prompts: Any, config: Any) -> Any:
        asked.extend([0] * len(prompts))
        return original(self, prompts, config)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TextGenerator, "write_ids", counting)
        found = run(*FEW, "target=out.jsonl")
    assert (store / "out.jsonl").read_bytes() == (store / "whole.jsonl").read_bytes()
    with_text = {row for row in range(18) if row % 9 != 8}
    assert len(asked) == len(with_text - answered)  # nothing is answered twice
    assert found.written.rows == 18
    assert not list(store.glob(".out*"))


def test_what_is_gone_on_with_is_one_run(rows: Path, store: Path, killed_after: Callable[[int], None]) -> None:
    killed_after(2)
    with pytest.raises(Killed):
        run(*FEW, "target=out.jsonl")
    (before,) = all_runs()
    killed_after(0)
    found = run(*FEW, "target=out.jsonl")
    (after,) = all_runs()
    assert before.info.run_id == after.info.run_id == found.run_id
    assert (before.info.status, after.info.status) == ("FAILED", "FINISHED")
    MlflowClient().delete_run(found.run_id)
    killed_after(2)
    with pytest.raises(Killed):
        run(*FEW, "target=other.jsonl")
    (other,) = all_runs()
    MlflowClient().delete_run(other.info.run_id)
    killed_after(0)
    assert run(*FEW, "target=other.jsonl").run_id not in (found.run_id, other.info.run_id)  # its run is gone
    assert (store / "other.jsonl").read_bytes() == (store / "out.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("top_p=0.5", "generation.top_p was 0.9, and is 0.5"),
        ("seed=7", "generation.seed was 42, and is 7"),
        ("column=answer", 'column was "text", and is "answer"'),
        ("model", "the model's weights changed"),
        ("template", "the model's tokenizer or prompt template changed"),
        ("rows", "the source's rows changed"),
    ],
)
def test_what_was_begun_otherwise_is_refused_and_begun_anew_by_force(
    rows: Path, store: Path, tokenizer: Tokenizer, killed_after: Callable[[int], None], change: str, said: str
) -> None:
    killed_after(2)
    with pytest.raises(Killed):
        run(*FEW, "target=out.jsonl")
    killed_after(0)
    arguments = [*FEW, "target=out.jsonl"]
    if change in ("model", "template"):
        asked = tokenizer.with_prompt_template("{src_txt}：" if change == "template" else None)
        decoder = make_decoder(make_config(tokenizer.vocab_size), seed=9 if change == "model" else 0)
        save_model(store / "another", decoder, asked, {})
        arguments += ["model=another"]
    elif change == "rows":
        with rows.open("a", encoding="utf-8") as stream:
            stream.write('{"src_txt": "新"}\n')
    else:
        arguments += [change]
    with pytest.raises(ValueError, match="target=out.jsonl was begun otherwise: ") as caught:
        run(*arguments)
    assert said in str(caught.value)
    assert "another target, or force=true" in str(caught.value)
    assert len(all_runs()) == 1
    run(*arguments, "force=true")
    run(*arguments, "target=fresh.jsonl")
    assert (store / "out.jsonl").read_bytes() == (store / "fresh.jsonl").read_bytes()


def test_smaller_batches_may_go_on(rows: Path, store: Path, killed_after: Callable[[int], None]) -> None:
    killed_after(2)
    with pytest.raises(Killed):
        run(*FEW, "target=out.jsonl")
    killed_after(0)
    run(*FEW, "target=out.jsonl", "max_batch_tokens=1")
    run(*FEW, "target=whole.jsonl")
    assert read(store / "out.jsonl") == read(store / "whole.jsonl")


def test_a_finished_target_is_replaced_by_force_alone(rows: Path, store: Path) -> None:
    (store / "out.jsonl").write_text("somebody's\n")
    with pytest.raises(ValueError, match="target=out.jsonl exists already, and nothing is overwritten.*force=true"):
        run(*FEW, "target=out.jsonl")
    assert (store / "out.jsonl").read_text() == "somebody's\n"
    run(*FEW, "target=out.jsonl", "force=true")
    assert len(read(store / "out.jsonl")) == 18


def test_a_forced_attempt_that_was_killed_goes_on_and_leaves_the_old_target_until_then(
    rows: Path, store: Path, killed_after: Callable[[int], None]
) -> None:
    (store / "out.jsonl").write_text("somebody's\n")
    killed_after(2)
    with pytest.raises(Killed):
        run(*FEW, "target=out.jsonl", "force=true")
    assert (store / "out.jsonl").read_text() == "somebody's\n"
    killed_after(0)
    with pytest.raises(ValueError, match="exists already"):
        run(*FEW, "target=out.jsonl")
    run(*FEW, "target=out.jsonl", "force=true")
    assert len(all_runs()) == 1
    assert len(read(store / "out.jsonl")) == 18


def test_a_kill_after_the_target_is_written_is_no_finished_target_of_somebody_else(
    rows: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.predict.log_written", killed)
        with pytest.raises(Killed):
            run(*FEW, "target=out.jsonl")
    written = (store / "out.jsonl").read_bytes()
    found = run(*FEW, "target=out.jsonl")
    assert (store / "out.jsonl").read_bytes() == written
    assert MlflowClient().get_run(found.run_id).data.metrics["predict/rows"] == 18
    assert not list(store.glob(".out*"))


def test_two_processes_cannot_have_one_target(rows: Path, store: Path) -> None:
    folder = Journal(store / "out.jsonl").folder
    folder.mkdir()
    lock = take_lock(folder / ".lock", "process 1 on another")
    with pytest.raises(ValueError, match="target=out.jsonl is in use by process 1 on another: choose another, or wait"):
        run(*FEW, "target=out.jsonl")
    lock.release()
    run(*FEW, "target=out.jsonl")


def test_a_full_disk_is_said_and_gone_on_from(rows: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the answers find no room, in the middle of a line, or the target."""
    for where in ("write_all", "sha256_of"):
        with monkeypatch.context() as patched:

            def full(stream: Any, content: bytes = b"") -> None:
                if content:
                    stream.write(content[: len(content) // 2])
                raise OSError(28, "No space left on device", str(store / "out.jsonl"))

            patched.setattr(f"modules.inference.prediction.journal.{where}", full)
            with pytest.raises(OSError, match="No space left"):
                run(*FEW, "target=out.jsonl")
        assert not (store / "out.jsonl").exists()
    run(*FEW, "target=out.jsonl")
    run(*FEW, "target=whole.jsonl")
    assert (store / "out.jsonl").read_bytes() == (store / "whole.jsonl").read_bytes()


def test_a_signal_says_that_the_same_command_goes_on(rows: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise Stopped(15)

    monkeypatch.setattr(TextGenerator, "write_ids", stopped)
    with pytest.raises(Stopped) as caught:
        run(*FEW, "target=out.jsonl")
    assert caught.value.code == 143
    assert caught.value.message == "stopped; what is answered stays, and the same command goes on with out.jsonl"
    assert [run.info.status for run in all_runs()] == ["KILLED"]


def test_a_source_that_changes_meanwhile_makes_no_target(
    rows: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TextGenerator.write_ids

    def write_ids(self: TextGenerator, *arguments: Any) -> Any:
        with rows.open("a", encoding="utf-8") as stream:
            stream.write('{"src_txt": "新"}\n')
        return original(self, *arguments)

    monkeypatch.setattr(TextGenerator, "write_ids", write_ids)
    with pytest.raises(DataError, match="source=rows.jsonl changed while it was read: nothing was written"):
        run(*FEW, "target=out.jsonl")
    assert not (store / "out.jsonl").exists()


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
    assert record.data.tags["stage"] == "predict"
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


# --- memory, and Python ---


def test_no_more_than_a_window_of_rows_is_held(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = 0

    def endless() -> Iterator[dict[str, str]]:
        nonlocal pulled
        for number in range(100_000):
            pulled += 1
            yield {"src_txt": TEXTS[number % len(TEXTS)]}

    monkeypatch.setattr(answering, "WINDOW_ROWS", 8)
    found = pipeline(model="model").map(endless(), max_new_tokens=1, seed=1)
    for given in range(1, 50):
        next(found)
        assert given <= pulled <= given + 8


def test_a_window_of_long_rows_holds_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "WINDOW_CHARACTERS", 10)
    assert [len(window) for window in answering.windows([{"a": "12345"}] * 5)] == [2, 2, 1]


def test_a_pipeline_maps_any_rows_as_predict_does(model: Path, store: Path, small_windows: None) -> None:
    jsonl(store / "rows.jsonl", [{"src_txt": text, "n": 1} for text in [*TEXTS, ""]])
    run("source=rows.jsonl", "target=out.jsonl", "return_full_text=false")
    wanted = [{key: row[key] for key in ("text", "stopped")} for row in read(store / "out.jsonl")]
    pipe = pipeline(model="model", max_new_tokens=6, top_p=0.9, seed=42)
    given = datasets.Dataset.from_json(str(store / "rows.jsonl"), cache_dir=str(store / "cache"))
    for rows in (given, ({"text": text} for text in [*TEXTS, ""]), iter([*TEXTS, ""])):
        found = list(pipe.map(rows, return_full_text=False))
        assert [{key: row[key] for key in ("text", "stopped")} for row in found] == wanted
        assert [row["error"] for row in found] == [*[None] * len(TEXTS), "the text is empty"]
    with pytest.raises(ConfigError, match="temperature"):
        pipe.map(TEXTS, temperature=-1)  # at once, not when the first row is asked for


def test_batches_fill_the_budget_with_rows_of_like_length() -> None:
    found = list(answering.batches([1, 9, 2, 8, 30], 2, 22))
    assert found == [[4], [1, 3], [2, 0]]
    assert list(answering.batches([], 2, 22)) == []


def test_a_link_stays_a_link(rows: Path, store: Path) -> None:
    (store / "elsewhere").mkdir()
    (store / "out.jsonl").symlink_to("elsewhere/answers.jsonl")
    run(*FEW, "target=out.jsonl")
    assert os.readlink(store / "out.jsonl") == "elsewhere/answers.jsonl"
    assert len(read(store / "elsewhere" / "answers.jsonl")) == 18
