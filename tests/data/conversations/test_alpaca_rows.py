"""Rows in Alpaca's layout, as LLaMA-Factory reads them: an instruction's input and the turns before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modules.config.prediction import PredictConfig
from modules.data.conversations.message_rows import Conversation
from modules.data.corpora.folders import prepare_rows
from modules.data.quarantine import DataError
from modules.data.rows import load_rows
from modules.inference.prediction.source_rows import Source

COLUMNS = {"instruction": "src_txt", "output": "tgt_txt"}
FIRST = {"instruction": "翻译成现代文", "input": "学而时习之", "output": "学了又按时温习"}
SECOND = {"instruction": "写一句诗", "input": "", "output": "春眠不觉晓"}
TALK = {"instruction": "再短些", "output": "学而习之", "history": [["翻译", "学了温习"], ["不对", "学习"]]}


def contents(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["src_txt"], row["tgt_txt"]) for row in load_rows(rows, COLUMNS)]


def messages(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in json.loads(row["messages"])]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0])]
        for row in rows:
            cells = [cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False) for cell in row.values()]
            lines.append(",".join('"' + cell.replace('"', '""') + '"' for cell in cells))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_an_input_stands_on_the_line_after_its_instruction(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / f"rows.{kind}", [FIRST, SECOND])
    found = [(row["src_txt"], row["tgt_txt"]) for row in load_rows(path, COLUMNS)]
    assert found == [("翻译成现代文\n学而时习之", "学了又按时温习"), ("写一句诗", "春眠不觉晓")]


@pytest.mark.parametrize("nothing", [None, "", " ", float("nan")])
def test_no_input_leaves_the_instruction_alone(nothing: object) -> None:
    assert contents([{**SECOND, "input": nothing}]) == [("写一句诗", "春眠不觉晓")]
    assert contents([{**SECOND, "input": 5}]) == [("写一句诗\n5", "春眠不觉晓")]


def test_a_row_alone_may_have_an_input() -> None:
    assert contents([{"instruction": "诗", "output": "春"}, FIRST])[1][0] == "翻译成现代文\n学而时习之"


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_history_is_the_turns_before(tmp_path: Path, kind: str) -> None:
    plain = {"instruction": "写诗", "output": "春", "history": []}
    path = written(tmp_path / f"rows.{kind}", [TALK, plain])
    first, second = load_rows(path, COLUMNS)
    assert messages(first) == [
        ("user", "翻译"),
        ("assistant", "学了温习"),
        ("user", "不对"),
        ("assistant", "学习"),
        ("user", "再短些"),
        ("assistant", "学而习之"),
    ]
    assert (first["src_txt"], first["tgt_txt"]) == ("再短些", "学而习之")
    assert messages(second) == [("user", "写诗"), ("assistant", "春")]


def test_history_may_show_late_and_stand_beside_input_and_system() -> None:
    rows = [FIRST, {**TALK, "input": "越短越好", "system": "用文言"}]
    first, second = load_rows(rows, COLUMNS)
    assert messages(first) == [("user", "翻译成现代文\n学而时习之"), ("assistant", "学了又按时温习")]
    assert messages(second)[0] == ("system", "用文言")
    assert messages(second)[-2] == ("user", "再短些\n越短越好")


@pytest.mark.parametrize(
    ("history", "wrong"),
    [
        (3, "isn't a list of messages"),
        ("翻译", "isn't JSON"),
        ([["翻译"]], "can't be used"),
        ([["翻译", ""]], "has a message that is empty"),
        (["翻译", "学习"], "can't be used"),
    ],
)
def test_what_is_no_history_is_refused_with_its_row(history: object, wrong: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)row 2.*the conversation .*{wrong}"):
        load_rows([{**TALK}, {**TALK, "history": history}], COLUMNS)


def test_columns_of_other_layouts_are_not_joined() -> None:
    rows = [{"text": "春", "answer_text": "眠", "input": "夏", "history": [["一", "二"]]}]
    found = load_rows(rows, {"text": "src_txt", "answer_text": "tgt_txt"})
    assert found.column_names == ["src_txt", "tgt_txt"]
    assert found["src_txt"][0] == "春"
    assert load_rows([FIRST], {"input": "src_txt", "output": "tgt_txt"})["src_txt"][0] == "学而时习之"
    mapped = load_rows([{**FIRST, "input": "一"}], {**COLUMNS, "input": "group"})
    assert (mapped["src_txt"][0], mapped["group"][0]) == ("翻译成现代文", "一")


def test_the_mapping_is_said_where_it_is_missing() -> None:
    with pytest.raises(
        DataError, match=r"as Alpaca's rows have; give data\.columns\.instruction=src_txt data\.columns\.output=tgt_txt"
    ):
        load_rows([FIRST])


def test_prepare_keeps_and_names_the_columns(tmp_path: Path) -> None:
    rows = [{**FIRST, "input": f"第{number}句", "id": number} for number in range(40)]
    path = written(tmp_path / "rows.jsonl", rows)
    manifest = prepare_rows(tmp_path / "out", str(path), COLUMNS, 0.1, 0.1)
    assert manifest["columns not kept"] == ["id"]


def asked(tmp_path: Path, rows: list[dict[str, Any]]) -> list[object]:
    path = written(tmp_path / "rows.jsonl", rows)
    source = Source(PredictConfig(source=str(path), columns={"instruction": "src_txt"}))
    source.survey()
    return [source.asked(row) for row in source]


def test_predict_asks_as_training_did(tmp_path: Path) -> None:
    assert asked(tmp_path, [FIRST, SECOND]) == ["翻译成现代文\n学而时习之", "写一句诗"]
    last = asked(tmp_path, [FIRST, {**TALK, "system": "用文言"}])[1]
    assert isinstance(last, Conversation)
    question, fault = last.question
    assert fault is None
    assert [text for _, text in question] == ["用文言", "翻译", "学了温习", "不对", "学习", "再短些"]
