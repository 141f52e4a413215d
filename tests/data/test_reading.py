"""Files are found, joined and named by their columns; what is read is what was hashed; memory is bounded by bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modules.config.loader import load_config
from modules.data import arrow, rows
from modules.data.arrow import record_batches
from modules.data.quarantine import DataError, Findings, Quarantine
from modules.data.reading import headers
from modules.data.reading.column_names import setting
from modules.data.reading.headers import check_headers
from modules.data.reading.tables import rows_at_once
from modules.data.rows import load_rows
from modules.data.sources import has_split, has_splits
from modules.data.splits import Place
from modules.training.planning.split_facts import facts_of_splits
from tests.helpers.models import ROOT

PAIR = {"src_txt": "春", "tgt_txt": "花"}
NEARLY = [
    "tgt",
    "Target",
    "trg_txt",
    "tgt_txt ",
    " tgt_txt",
    "Tgt_Txt",
    "TGT-TXT",
    "tgttxt",
    "tgt txt",
    "ｔｇｔ＿ｔｘｔ",
    "tgt_\u200btxt",
    "\ufefftgt_txt",
    "tgt_text",
]


def write(path: Path, name: str, rows: list[dict[str, str]]) -> Path:
    """Rows as a file of the format that the name says."""
    path = path / name
    columns = {column: [row[column] for row in rows] for column in rows[0]}
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix in (".csv", ".tsv"):
        sign = "," if path.suffix == ".csv" else "\t"
        path.write_text(
            "".join(sign.join(line) + "\n" for line in [list(columns), *zip(*columns.values(), strict=True)])
        )
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("name", NEARLY)
def test_a_target_nearly_named_is_refused_and_the_setting_offered_works(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path, f"a.{kind}", [{"src_txt": "春", name: "花"}])
    with pytest.raises(DataError) as caught:
        load_rows(path)
    assert f"no column tgt_txt but {name!r}" in str(caught.value)
    offered = str(caught.value).partition("give ")[2].partition("; if not")[0]
    [argument] = subprocess.check_output(["sh", "-c", f"printf %s {offered}"], text=True).splitlines()
    config = load_config("finetune", [argument, "train.init_from=x"])
    assert load_rows(path, config.data.columns).to_list() == [PAIR]


def test_a_target_nearly_named_is_refused_wherever_rows_come_from(tmp_path: Path) -> None:
    given = [{"src_txt": "春"}] * 699 + [{"src_txt": "春", "Tgt_Txt": "花"}]
    dataset = datasets.Dataset.from_list([{"src_txt": "春", "Tgt_Txt": "花"}])
    dataset.save_to_disk(tmp_path / "saved")
    for source in (
        given,
        dataset,
        datasets.DatasetDict(train=dataset),
        {"src_txt": ["春"], "tgt-txt": ["花"]},
        tmp_path / "saved",
    ):
        with pytest.raises(DataError, match=r"no column tgt_txt but '(Tgt_Txt|tgt-txt)'"):
            load_rows(source)
    exact = [{"src_txt": "春", "Tgt_Txt": "云", "tgt_txt": "花"}]
    assert load_rows(exact).to_list() == [PAIR]
    assert load_rows([{"src_txt": "春", "text": "云", "id": "1"}]).to_list() == [{"src_txt": "春"}]


def test_a_setting_is_offered_in_the_spelling_of_its_stage() -> None:
    assert setting("a b", "src_txt", "data.") == """'data.columns={"a b": src_txt}'"""
    assert setting("a=b", "tgt_txt", "") == """'columns={"a=b": tgt_txt}'"""
    assert load_config("prepare", ["source=my.csv", 'columns={"a=b": tgt_txt}']).columns == {"a=b": "tgt_txt"}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_file_replaced_between_hashing_and_reading_leaves_no_entry(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, f"a.{kind}", [{"src_txt": "春"}])
    hashed = rows.content_of

    def hashed_then_replaced(files: list[Path]) -> list[tuple[str, str]]:
        found = hashed(files)
        write(tmp_path, f"a.{kind}", [{"src_txt": "秋"}])
        return found

    monkeypatch.setattr(rows, "content_of", hashed_then_replaced)
    with pytest.raises(DataError, match=rf"a\.{kind} changed while it was read"):
        load_rows(path, cache=tmp_path / "cache")
    monkeypatch.undo()
    write(tmp_path, f"a.{kind}", [{"src_txt": "春"}])
    assert load_rows(path, cache=tmp_path / "cache").to_list() == [{"src_txt": "春"}]


def test_shards_patterns_and_lists_are_joined_in_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write(tmp_path, f"train-{number}.jsonl", [{"src_txt": str(number)}])
    expected = [{"src_txt": "1"}, {"src_txt": "9"}, {"src_txt": "10"}]
    for source in (
        tmp_path,
        f"{tmp_path}/*.jsonl",
        f"[{tmp_path}/train-1.jsonl, {tmp_path}/train-9.jsonl,{tmp_path}/train-10.jsonl]",
    ):
        assert load_rows(source, cache=tmp_path / "cache").to_list() == expected
    assert load_rows(f"[{tmp_path}/train-9.jsonl,{tmp_path}/train-1.jsonl]").to_list() == expected[1::-1]
    assert has_splits(tmp_path)
    assert not has_splits(f"{tmp_path}/*.jsonl")
    with pytest.raises(DataError, match=r"there is no file .*none\*\.csv"):
        load_rows(f"{tmp_path}/none*.csv")
    with pytest.raises(DataError, match=r"train-1\.jsonl twice"):
        load_rows(f"[{tmp_path}/train-1.jsonl,{tmp_path}/*-1.jsonl]")
    write(tmp_path, "test.jsonl", [{"src_txt": "秋"}])
    with pytest.raises(DataError, match="names files of train and test"):
        load_rows(f"{tmp_path}/*.jsonl")


def test_a_bad_row_of_several_files_is_named_with_its_own(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", [{"src_txt": "春"}] * 3)
    write(tmp_path, "b.csv", [{"src_txt": "秋"}, {"src_txt": " "}, {"src_txt": "冬"}])
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        quarantine = Quarantine(0.5)
        found = load_rows(f"[{tmp_path}/a.jsonl,{tmp_path}/b.csv]", cache=cache, quarantine=quarantine)
        assert found["src_txt"][:] == ["春", "春", "春", "秋", "冬"]
        [bad] = quarantine.rows
        assert (bad["file"], bad["line"]) == (str(tmp_path / "b.csv"), 3)


@pytest.mark.parametrize("place", ["", "data"])
@pytest.mark.parametrize(
    "names", [("train.csv", "dev.csv", "test.csv"), ("poems-train.csv", "poems_val.csv", "x.test.csv")]
)
def test_each_split_of_a_folder_is_found(tmp_path: Path, place: str, names: tuple[str, ...]) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    for name in names:
        write(tmp_path / place, name, [{"src_txt": name}])
    for split, name in zip(("train", "validation", "test"), names, strict=True):
        assert has_split(tmp_path, split)
        assert load_rows(tmp_path, split=split).to_list() == [{"src_txt": name}]


def test_a_folder_of_texts_is_one_split_and_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("春\n")
    (tmp_path / "b" / "c.txt").write_text("秋\n")
    (tmp_path / ".hidden.txt").write_text("云\n")
    (tmp_path / "README.md").write_text("no rows\n")
    assert load_rows(tmp_path)["src_txt"][:] == ["春", "秋"]
    assert not has_splits(tmp_path)
    (tmp_path / "b" / "test.txt").write_text("冬\n")
    with pytest.raises(DataError, match=r"rows are in .*b, which is to be given itself"):
        load_rows(tmp_path)


def test_texts_without_columns_are_rows_in_python_too() -> None:
    assert load_rows(["春", "秋"]).to_list() == [{"src_txt": "春"}, {"src_txt": "秋"}]
    with pytest.raises(DataError, match="the given data row 2: a dict, not a string like the first row"):
        load_rows(["春", PAIR])  # type: ignore[list-item]


def test_batches_are_bounded_by_bytes_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "BATCH_BYTES", 100)
    texts = [chr(0x4E00 + number) * (40 if number % 7 == 0 else 5) for number in range(50)]
    whole = datasets.concatenate_datasets(
        [datasets.Dataset.from_dict({"src_txt": texts[a:b]}) for a, b in ((0, 9), (9, 50))]
    )
    order = np.random.default_rng(0).permutation(50)
    for rows_, expected in (
        (whole, texts),
        (whole.select(range(3, 50, 2)), texts[3::2]),
        (whole.select(order), [texts[i] for i in order]),
        (whole.select([]), []),
    ):
        batches = list(record_batches(rows_))
        assert [text for batch in batches for text in batch.column(0).to_pylist()] == expected
        for batch in batches:
            assert len(batch) == 1 or sum(len(text.encode()) for text in batch.column(0).to_pylist()) <= 100


def test_values_that_no_column_needs_count_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_BATCH_CHARACTERS", 1000)
    given = [(number, {"src_txt": "春", "vector": [0.5] * 100}) for number in range(10)]
    assert max(map(len, rows._in_batches(given, Findings("x")))) == 2


def test_few_long_rows_of_parquet_are_decoded_at_once(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"src_txt": [str(number) * 200_000 for number in range(10, 40)]}), tmp_path / "long.parquet"
    )
    pq.write_table(pa.table({"src_txt": ["春"] * 1000}), tmp_path / "short.parquet")
    assert rows_at_once(pq.read_metadata(tmp_path / "long.parquet")) == 9
    assert rows_at_once(pq.read_metadata(tmp_path / "short.parquet")) == 64


PEAK = """
import sys
from pathlib import Path
from modules.data.rows import load_rows
load_rows(sys.argv[1], cache=Path(sys.argv[2]))
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_long_rows_of_parquet_take_little_memory(tmp_path: Path) -> None:
    """120 MB in one row group, all of which would be in memory several times; its pages are small here."""
    letters = np.random.default_rng(0).integers(0x4E00, 0x9000, 200_000)
    text = "".join(map(chr, letters))
    table = pa.table({"src_txt": [text[start : start + 100_000] for start in range(400)]})
    pq.write_table(table, tmp_path / "long.parquet", write_batch_size=8, use_dictionary=False)
    pq.write_table(table.slice(0, 1), tmp_path / "short.parquet")
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", PEAK, tmp_path / name, tmp_path / "cache"], cwd=ROOT))
        for name in ("short.parquet", "long.parquet")
    ]
    assert peaks[1] - peaks[0] < 200_000


@pytest.mark.parametrize("stage", ["prepare", "finetune", "pretrain", "evaluate", "register", "main"])
def test_a_wrong_column_is_refused_before_anything_heavy_is_imported(tmp_path: Path, stage: str) -> None:
    path = write(tmp_path, "a.csv", [{"src_txt": "春", "Tgt_Txt": "花"}])
    given = {
        "prepare": [f"source={path}"],
        "finetune": [f"data.path={path}", "train.init_from=x"],
        "pretrain": [f"data.path={path}", "model=tiny"],
        "evaluate": [f"data.test_path={path}", "model=x"],
        "register": [f"data.test_path={path}", "model=x"],
        "main": [f"finetune.data.path={path}"],
    }[stage]
    (tmp_path / "empty").mkdir()
    for name in ("torch", "mlflow", "datasets"):
        (tmp_path / "empty" / f"{name}.py").write_text("raise SystemExit('imported too early')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'empty'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", f"pipelines.{stage}", *given]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    key = {"prepare": "columns", "main": "finetune.data.columns"}.get(stage, "data.columns")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"{stage}: {path} has no column tgt_txt but 'Tgt_Txt'")
    assert f"give {key}.Tgt_Txt=tgt_txt" in ended.stderr


def test_headers_are_those_of_the_splits_that_a_stage_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write(tmp_path, "train.csv", [PAIR])
    write(tmp_path, "test.jsonl", [{"text": "秋"}])
    start = "train.init_from=x"
    with pytest.raises(DataError, match=r"test\.jsonl has no column src_txt; its columns are 'text'"):
        check_headers(load_config("finetune", [f"data.path={tmp_path}", start]))
    with pytest.raises(DataError, match=r"test\.jsonl has no column src_txt"):
        check_headers(load_config("evaluate", [f"data.path={tmp_path}", "model=x"]))
    check_headers(load_config("finetune", [f"data.path={tmp_path}", f"data.test_path={good}", start]))
    check_headers(load_config("finetune", [f"data.path={tmp_path}", "data.bad_rows=quarantine", start]))
    check_headers(load_config("evaluate", [f"data.test_path={good}", f"data.path={tmp_path}", "model=x"]))
    check_headers(load_config("finetune", ["data.path=poet/poems", start]))  # may be on the hub
    with pytest.raises(DataError, match=r"nowhere\.csv is neither a file nor"):
        check_headers(load_config("finetune", ["data.path=nowhere.csv", start]))
    monkeypatch.setattr(headers, "FIRST_ROWS", 2)
    late = write(tmp_path, "late.jsonl", [{"src_txt": "春", "tgt_txt": "花"}] * 3)
    check_headers(load_config("prepare", [f"source={late}"]))


@pytest.mark.parametrize(("row", "kind"), [(PAIR, "pairs"), ({"src_txt": "春"}, "rows of plain text")])
def test_the_plan_says_what_kind_of_rows_it_is(tmp_path: Path, row: dict[str, str], kind: str) -> None:
    place = Place(write(tmp_path, "a.csv", [row]), None)
    splits = {"train": load_rows(place.source), "validation": load_rows(place.source)}
    facts = facts_of_splits(splits, dict.fromkeys(splits, place), {})
    assert {fact.kind for fact in facts.values()} == {kind}
