"""What predict refuses before there is a run or a file, and what one of two processes is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.config.loader import ConfigError, load_config
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.predictions import jsonl, read, run, small_model
from tests.tracking.test_tracking import all_runs


@pytest.fixture
def model(store: Path, tokenizer: Tokenizer) -> Path:
    return small_model(store / "model", tokenizer)


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
        (["source=rows.csv", "logit_bias.999999=1"], "logit_bias names token 999999"),
        (["source=commas.csv"], "duplicate columns .*these have no name"),
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
        "commas.csv": "src_txt,n,,\n春,1,,\n",
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
