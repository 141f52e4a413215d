"""What prepare keeps of users' rows beside their texts, and what it makes of near copies."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modules.config.data import TASK_DATA, DataConfig, PrepareConfig
from modules.config.training import TrainingConfig
from modules.data.corpora.dedup import near_copies_of_many
from modules.data.corpora.folders import prepare_rows
from modules.data.corpora.verse import SPLITS
from modules.data.quarantine import DataError, Quarantine
from modules.data.reading.column_names import OTHER_COLUMNS
from modules.data.reading.headers import check_headers
from modules.data.rows import load_rows
from modules.evaluation.task_rows import COLUMNS, GROUP
from modules.system.jsonl import read_jsonl
from pipelines.cli.summaries import describe_prepared, row_counts
from tests.data.corpora.test_folders import write_csv


def text(number: int, length: int = 30) -> str:
    letters = random.Random(number)
    return "".join(chr(letters.randrange(0x4E00, 0x9FA5)) for _ in range(length))


def changed(value: str, *places: int) -> str:
    letters = list(value)
    for place in places:
        letters[place] = "丿"
    return "".join(letters)


def passages(count: int = 40, each: int = 4) -> list[dict[str, Any]]:
    return [
        {"src_txt": text(n * 100 + q), "tgt_txt": text(n * 100 + q + 50, 9), "group": n, "references": [f"甲{q}", "乙"]}
        for n in range(count)
        for q in range(each)
    ]


def split_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: read_jsonl(folder / f"{name}.jsonl.gz") for name in SPLITS if (folder / f"{name}.jsonl.gz").exists()}  # type: ignore[misc]


def prepared(folder: Path, source: Path, columns: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    return prepare_rows(folder / "out", str(source), columns or {}, 0.1, 0.1, **more)


def as_csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    as_text = [{**row, "references": json.dumps(row["references"], ensure_ascii=False)} for row in rows]
    return write_csv(folder / "rows.csv", as_text)


def as_jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "rows.jsonl"


def as_json(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "rows.json"


def as_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def as_saved(folder: Path, rows: list[dict[str, Any]]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return folder / "saved"


# --- columns beside the texts ---


def test_all_that_evaluation_reads_is_kept() -> None:
    assert {GROUP, *(name for names in COLUMNS.values() for name in names)} == set(OTHER_COLUMNS)


@pytest.mark.parametrize("form", [as_csv, as_jsonl, as_json, as_parquet, as_saved])
def test_columns_that_evaluation_reads_are_kept_in_any_format(form: Any, tmp_path: Path) -> None:
    manifest = prepared(tmp_path, form(tmp_path, [{**row, "id": str(row["group"])} for row in passages()]))
    found = [row for rows in split_rows(tmp_path / "out").values() for row in rows]
    by_source = {row["src_txt"]: {**row, "group": int(row["group"])} for row in found}
    assert by_source == {row["src_txt"]: row for row in passages()}
    assert manifest["columns"] == ["src_txt", "tgt_txt", "references", "group"]
    assert manifest["columns not kept"] == ["id"]
    labels = {name: {row["group"] for row in rows} for name, rows in split_rows(tmp_path / "out").items()}
    assert [len(labels[name]) for name in SPLITS] == [32, 4, 4]
    assert len(set().union(*labels.values())) == 40  # no passage is in two splits
    assert manifest["groups"] == {
        "train": 32,
        "validation": 4,
        "test": 4,
        "rows of a group in train": {"validation": 0, "test": 0},
    }


def test_columns_are_mapped_by_any_name(tmp_path: Path) -> None:
    rows = [{"问": row["src_txt"], "passage_id": row["group"], "refs": row["references"]} for row in passages()]
    columns = {"问": "src_txt", "passage_id": "group", "refs": "references"}
    manifest = prepared(tmp_path, as_jsonl(tmp_path, rows), columns)
    assert manifest["columns not kept"] == []
    row = split_rows(tmp_path / "out")["test"][0]
    assert {"问": row["src_txt"], "passage_id": int(row["group"]), "refs": row["references"]} in rows


def test_a_split_alone_may_have_the_column_but_one_has_to(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_csv(folder / "train.csv", [{"src_txt": text(n)} for n in range(30)])
    write_csv(folder / "test.csv", [{"src_txt": text(90), "refs": '["甲"]'}])
    prepared(tmp_path, folder, {"refs": "references"})
    assert split_rows(tmp_path / "out")["test"] == [{"src_txt": text(90), "references": ["甲"]}]
    with pytest.raises(DataError, match="columns.ref=references: no rows have a column 'ref'; correct its name"):
        prepare_rows(tmp_path / "other", str(folder), {"ref": "references"}, 0.1, 0.1)
    with pytest.raises(DataError, match="did you mean columns.a=references"):
        prepare_rows(tmp_path / "other", str(folder), {"a": "reference"}, 0.1, 0.1)


@pytest.mark.parametrize("form", [as_csv, as_jsonl, as_json, as_parquet])
def test_what_is_mapped_is_looked_for_before_anything_else(form: Any, tmp_path: Path) -> None:
    rows = [{"passage": row["group"], **row} for row in passages()]
    path = form(tmp_path, rows)
    check_headers(PrepareConfig(source=str(path), columns={"passage": "answer"}))
    check_headers(TrainingConfig(data=DataConfig(path=str(path), columns={"passage": "answer"})))
    if form in (as_csv, as_parquet):  # in JSON a later row may have it
        words = r"columns.passages=answer: no rows have a column 'passages'; did you mean columns.passage=answer\?"
        with pytest.raises(DataError, match=words):
            check_headers(PrepareConfig(source=str(path), columns={"passages": "answer"}))


def test_rows_are_copies_by_their_texts_and_bad_by_them(tmp_path: Path) -> None:
    rows = [*passages(), {**passages()[0], "group": 77, "references": None}, {"src_txt": "", "group": 1}]
    manifest = prepared(tmp_path, as_jsonl(tmp_path, rows), quarantine=Quarantine(0.1))
    assert manifest["exact copies dropped"] == 1
    assert manifest["files"]["quarantine.jsonl"]["rows"] == 1


def test_another_group_is_another_source(tmp_path: Path) -> None:
    rows = passages()
    first = prepared(tmp_path, as_jsonl(tmp_path, rows))
    assert prepared(tmp_path, as_jsonl(tmp_path, rows)) == first
    rows[0]["group"] = 5
    with pytest.raises(DataError, match="holds other data"):
        prepared(tmp_path, as_jsonl(tmp_path, rows))


def test_a_list_with_half_a_surrogate_pair_stays_text(tmp_path: Path) -> None:
    rows = [{"src_txt": text(n), "references": '["\\ud83d"]'} for n in range(30)]
    prepared(tmp_path, write_csv(tmp_path / "rows.csv", rows))
    assert split_rows(tmp_path / "out")["test"][0]["references"] == '["\\ud83d"]'


def test_rows_of_own_splits_that_share_a_group_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_csv(folder / "train.csv", [{"src_txt": text(n), "group": str(n // 3)} for n in range(30)])
    write_csv(folder / "test.csv", [{"src_txt": text(90 + n), "group": str(8 + n)} for n in range(5)])
    manifest = prepared(tmp_path, folder)
    assert manifest["groups"]["rows of a group in train"] == {"test": 2}  # groups 8 and 9


def test_what_was_prepared_is_read_again_as_it_was(tmp_path: Path) -> None:
    prepared(tmp_path, as_csv(tmp_path, passages()))
    rows = load_rows(tmp_path / "out", split="test", extras=OTHER_COLUMNS)
    assert json.loads(rows["references"][0]) == split_rows(tmp_path / "out")["test"][0]["references"]


# --- near copies ---


def test_near_copies_are_found_by_half_of_their_text() -> None:
    value = text(1, 40)
    assert near_copies_of_many([[value, changed(value, 20)], [text(2, 40)]]).tolist() == [0, 0, 2]
    assert near_copies_of_many([[value, f"“{value[:20]}，{value[20:]}！”"]]).tolist() == [0, 0]  # signs don't count
    poem = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少"
    assert near_copies_of_many([[poem, changed(poem, 4, 15)]]).tolist() == [0, 0]
    assert near_copies_of_many([[value, value[:10] + text(3, 30)]]).tolist() == [0, 1]
    assert near_copies_of_many([["春眠不觉晓", "春眠不觉晚", "", "！"], []]).tolist() == [0, 1, 2, 3]
    assert near_copies_of_many([]).tolist() == []


def test_many_near_copies_of_one_text_are_one_cluster_wherever_they_stand() -> None:
    value = text(1, 60)
    texts = [changed(value, n % 60, 7 * n % 60) if n % 3 == 0 else text(1000 + n, 60) for n in range(900)]
    found = near_copies_of_many([texts[start : start + 100] for start in range(0, 900, 100)])
    assert set(found[::3].tolist()) == {0}
    assert len(set(found.tolist())) == 601


def near_rows(count: int) -> list[dict[str, str]]:
    """Every tenth row is a near copy of the one before."""
    return [{"src_txt": changed(text(n - 1), 15) if n % 10 == 9 else text(n)} for n in range(count)]


def test_near_copies_stay_in_one_split_and_are_counted(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, as_jsonl(tmp_path, near_rows(1000)))
    assert manifest["near copies"] == {
        "rows": 100,
        "most of one text": 2,
        "also in train": {"validation": 0, "test": 0},
    }
    assert sum(len(rows) for rows in split_rows(tmp_path / "out").values()) == 1000


def test_rows_without_near_copies_stay_where_they_were(tmp_path: Path) -> None:
    source = as_jsonl(tmp_path, near_rows(1000))
    prepared(tmp_path, source)
    prepare_rows(tmp_path / "ignored", str(source), {}, 0.1, 0.1, near_copies="ignore")
    place = {row["src_txt"]: name for name, rows in split_rows(tmp_path / "ignored").items() for row in rows}
    moved = [
        row for name, rows in split_rows(tmp_path / "out").items() for row in rows if place[row["src_txt"]] != name
    ]
    paired = {text(n) for n in range(1000) if n % 10 == 8} | {row["src_txt"] for row in near_rows(1000)[9::10]}
    assert 0 < len(moved) < 100
    assert {row["src_txt"] for row in moved} <= paired


def test_near_copies_are_dropped_if_so_asked(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, as_jsonl(tmp_path, near_rows(1000)), near_copies="drop")
    assert manifest["near copies dropped"] == 100
    assert manifest["near copies"]["rows"] == 0
    found = {row["src_txt"] for rows in split_rows(tmp_path / "out").values() for row in rows}
    assert found == {row["src_txt"] for n, row in enumerate(near_rows(1000)) if n % 10 != 9}


def test_of_pairs_those_are_dropped_whose_answers_are_near_copies_too(tmp_path: Path) -> None:
    passage, answer = text(1, 60), text(2)
    alike = [
        {"src_txt": passage, "tgt_txt": answer},
        {"src_txt": changed(passage, 9), "tgt_txt": changed(answer, 9)},
        {"src_txt": changed(passage, 19), "tgt_txt": text(3)},  # another question on the passage
        {"src_txt": changed(passage, 29), "tgt_txt": "正面"},
        {"src_txt": changed(passage, 39), "tgt_txt": "正面"},
        {"src_txt": text(4), "tgt_txt": answer},
    ]
    others = [{"src_txt": text(n), "tgt_txt": text(n + 1000)} for n in range(100, 200)]
    manifest = prepared(tmp_path, as_jsonl(tmp_path, [*alike, *others]), near_copies="drop")
    found = [row for rows in split_rows(tmp_path / "out").values() for row in rows]
    assert [row in found for row in alike] == [True, False, True, True, False, True]
    assert manifest["near copies dropped"] == 2


def test_training_rows_near_to_test_rows_of_ones_own_are_counted_or_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    test = [{"src_txt": text(n), "tgt_txt": "甲"} for n in range(5)]
    near = [{"src_txt": changed(text(n), 15), "tgt_txt": "乙"} for n in range(2)]
    write_csv(folder / "train.csv", [*near, *({"src_txt": text(n), "tgt_txt": "丙"} for n in range(50, 80))])
    write_csv(folder / "test.csv", test)
    manifest = prepared(tmp_path, folder)
    assert manifest["near copies"]["also in train"] == {"test": 2}
    assert len(split_rows(tmp_path / "out")["train"]) == 32
    manifest = prepare_rows(tmp_path / "dropped", str(folder), {}, 0.1, 0.1, near_copies="drop")
    assert manifest["near copies dropped"] == 2
    assert split_rows(tmp_path / "dropped")["test"] == test
    assert len(split_rows(tmp_path / "dropped")["train"]) == 30


def test_rows_that_are_all_alike_are_split_as_others(tmp_path: Path) -> None:
    """A pattern that all rows have is how the data are: none may end up in one split, or be refused."""
    frame = text(1, 60)
    rows = [{"src_txt": f"{frame}{text(n + 10, 20)}"} for n in range(200)]
    manifest = prepared(tmp_path, as_jsonl(tmp_path, rows))
    assert manifest["near copies"]["most of one text"] == 200
    assert manifest["near copies"]["also in train"]["test"] == len(split_rows(tmp_path / "out")["test"]) > 5
    few = [{"src_txt": f"{frame}{text(n + 10, 20)}"} for n in range(4)]
    prepare_rows(tmp_path / "few", str(as_jsonl(tmp_path, few)), {}, 0.1, 0.1)
    assert [len(rows) for rows in split_rows(tmp_path / "few").values()] == [2, 1, 1]


def test_near_copies_of_groups_join_them(tmp_path: Path) -> None:
    rows = [{"src_txt": text(n), "group": str(n // 4)} for n in range(200)]
    for number in range(0, 200, 8):  # a row of each group is nearly one of the group after it
        rows[number + 4]["src_txt"] = changed(rows[number]["src_txt"], 15)
    manifest = prepared(tmp_path, as_jsonl(tmp_path, rows))
    assert manifest["near copies"] == {"rows": 25, "most of one text": 2, "also in train": {"validation": 0, "test": 0}}
    assert manifest["groups"]["rows of a group in train"] == {"validation": 0, "test": 0}


def test_whoever_does_not_want_to_know_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = as_jsonl(tmp_path, near_rows(50))
    manifest = prepared(tmp_path, source, near_copies="ignore")
    assert manifest["near copies"] == "not looked for: near_copies=ignore"
    with pytest.raises(DataError, match="holds other data"):
        prepared(tmp_path, source, near_copies="drop")
    for module in ("dedup", "folders"):
        monkeypatch.setattr(f"modules.data.corpora.{module}.MOST_TEXTS", 49)
    manifest = prepare_rows(tmp_path / "many", str(source), {}, 0.1, 0.1)
    assert manifest["near copies"] == "not looked for: over 49 rows"
    with pytest.raises(DataError, match=r"near_copies=drop: over 49 rows aren't compared"):
        prepare_rows(tmp_path / "dropped", str(source), {}, 0.1, 0.1, near_copies="drop")


@pytest.mark.parametrize("source", ["sample", "full", *TASK_DATA, "articles"])
@pytest.mark.parametrize(
    "given",
    [{"test_fraction": 0.1}, {"bad_rows": "quarantine"}, {"columns": {"a": "src_txt"}}, {"near_copies": "drop"}],
)
def test_what_is_for_ones_own_rows_is_refused_for_public_data(source: str, given: dict[str, Any]) -> None:
    archive = None if source == "sample" else "clone"
    complaints = list(PrepareConfig(source=source, archive=archive, **given).complaints())
    assert [complaint.partition("=")[0] for complaint in complaints] == list(given)
    assert f"goes with rows of your own alone, not with source={source}: drop it" in complaints[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"near_copies": None}, "an earlier moyun made it, without near_copies"),
        ({"near_copies": "drop"}, "other near_copies"),
        ({"sha256": {}, "fractions": {}}, "other rows or columns and validation_fraction or test_fraction"),
        ({}, "its files aren't as they were written"),
    ],
)
def test_a_folder_that_is_not_overwritten_is_told_why(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    source = as_jsonl(tmp_path, near_rows(50))
    manifest = prepared(tmp_path, source) | change
    kept = {key: value for key, value in manifest.items() if value is not None}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(kept), encoding="utf-8")
    if not change:
        (tmp_path / "out" / "test.jsonl.gz").write_bytes(b"")
    with pytest.raises(DataError, match=rf"holds other data than .* gives now \({why}\), and nothing is overwritten"):
        prepared(tmp_path, source)


def test_what_is_said_of_near_copies_leads_nowhere_wrong(tmp_path: Path) -> None:
    frame = text(1, 60)
    source = as_jsonl(tmp_path, [{"src_txt": f"{frame}{text(n + 10, 20)}"} for n in range(200)])
    said = describe_prepared(prepared(tmp_path, source), "near_copies")["near copies"]
    assert "199 rows" in said
    assert "near_copies=drop" not in said  # it would leave one row
    with pytest.raises(DataError, match=r"1 text is too little to split .*; near_copies=drop leaves 199 rows out$"):
        prepare_rows(tmp_path / "dropped", str(source), {}, 0.1, 0.1, near_copies="drop")
    pairs = [{"src_txt": changed(text(n // 2), 15 + n % 2), "tgt_txt": text(n + 500)} for n in range(100)]
    manifest = prepare_rows(tmp_path / "pairs", str(as_jsonl(tmp_path, pairs)), {}, 0.1, 0.1, near_copies="drop")
    said = describe_prepared(manifest, "near_copies")["near copies"]
    assert said == "50 rows share half of their text with an earlier one (of one text 2), but not their answers"


def test_splits_are_told_in_one_order() -> None:
    files = {f"{name}.jsonl.gz": {"rows": 1} for name in ("b/test", "b/train", "a/validation", "a/train", "a/other")}
    assert list(row_counts({"files": files})) == ["b/train", "b/test", "a/train", "a/validation", "a/other"]
