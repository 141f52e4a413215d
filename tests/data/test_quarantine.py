from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modules.config.data import DataConfig
from modules.config.loader import load_config
from modules.data import quarantine as bad_rows
from modules.data.corpora.folders import prepare_rows
from modules.data.quarantine import DataError, Quarantine
from modules.data.rows import load_rows
from modules.data.splits import load_splits
from modules.system.checksums import sha256_of
from modules.system.jsonl import read_jsonl
from pipelines.prepare import prepare

GOOD = [{"src_txt": f"第{number}行"} for number in range(97)]
MIXED = [
    *(json.dumps(row, ensure_ascii=False).encode() for row in GOOD[:50]),
    b'{"src_txt": ""}',
    b'{"src_txt": 7}',
    b'{"src_txt": "\xb0\xd7"}',  # GBK in the middle of UTF-8
    *(json.dumps(row, ensure_ascii=False).encode() for row in GOOD[50:]),
]
FAULTS = ["src_txt is empty", "src_txt is a number, not a string", "src_txt holds bytes that aren't UTF-8"]


def write_mixed(folder: Path, name: str = "mixed.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"\n".join(MIXED) + b"\n")
    return path


def reasons(quarantine: Quarantine) -> list[str]:
    return [row["reason"].partition(", or half")[0] for row in quarantine.rows]


def test_bad_rows_are_left_out_and_listed_with_line_reason_and_text(tmp_path: Path) -> None:
    path = write_mixed(tmp_path)
    quarantine = Quarantine(0.03)
    assert load_rows(path, quarantine=quarantine).to_list() == GOOD
    assert [(row["file"], row["line"]) for row in quarantine.rows] == [(str(path), line) for line in (51, 52, 53)]
    assert reasons(quarantine) == FAULTS
    assert quarantine.rows[1]["detail"] == " (7)"
    assert quarantine.rows[1]["text"] == '{"src_txt": 7}'
    quarantine.write(tmp_path / "list.jsonl")
    listed = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text(encoding="utf-8").splitlines()]
    assert listed == quarantine.rows


def test_more_bad_rows_than_allowed_are_refused_with_counts_and_remedy(tmp_path: Path) -> None:
    quarantine = Quarantine(0.0299)
    with pytest.raises(DataError) as caught:
        load_rows(write_mixed(tmp_path), quarantine=quarantine)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("mixed.jsonl: 3 of 100 rows are bad (3.00%), over max_bad_rows=0.0299")
    assert lines[1].endswith("mixed.jsonl:51: src_txt is empty")
    assert "raise data.max_bad_rows" in lines[-1]
    assert not quarantine.rows
    with pytest.raises(DataError, match="1 bad row\n"):  # and where no good row is left, whatever the share
        load_rows([{"src_txt": ""}], quarantine=Quarantine(0.99))


def test_the_cache_keeps_the_list_and_names_the_file_of_now(tmp_path: Path) -> None:
    first, second = Quarantine(0.05), Quarantine(0.05)
    fresh = load_rows(write_mixed(tmp_path), cache=tmp_path / "cache", quarantine=first)
    moved = write_mixed(tmp_path, "moved.jsonl")
    entries = set((tmp_path / "cache").iterdir())
    again = load_rows(moved, cache=tmp_path / "cache", quarantine=second)
    assert set((tmp_path / "cache").iterdir()) == entries
    assert fresh.to_list() == again.to_list() == GOOD
    assert second.rows == [{**row, "file": str(moved)} for row in first.rows]
    with pytest.raises(DataError, match="over max_bad_rows=0.01"):
        load_rows(moved, cache=tmp_path / "cache", quarantine=Quarantine(0.01))
    with pytest.raises(DataError, match=r"moved\.jsonl:53: byte 14 of the line"):  # what is tolerated stays asked for
        load_rows(moved, cache=tmp_path / "cache")


@pytest.mark.parametrize("cached", [False, True])
def test_a_column_that_shows_late_sends_the_rows_before_it_to_quarantine(tmp_path: Path, cached: bool) -> None:
    path = tmp_path / "late.jsonl"
    early = ['{"src_txt": "a"}'] * 10_000  # a whole batch, taken for rows without a target at first
    late = ['{"src_txt": "a", "tgt_txt": "b"}'] * 10_001
    path.write_text("\n".join([*early, *late]))
    quarantine = Quarantine(0.5)
    rows = load_rows(path, cache=tmp_path / "cache" if cached else None, quarantine=quarantine)
    assert (len(rows), rows.column_names) == (10_001, ["src_txt", "tgt_txt"])
    assert quarantine.counts() == {"tgt_txt is missing": 10_000}


def test_csv_txt_parquet_and_python_rows_are_quarantined_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'src_txt,n\na,1\n"b"c,2\n\xb0\xd7,3\nd\n\xb0\xd7 at the end,\n"e\nf",6\n')
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a\nb\rc\n\xb0\nd\n"))
    pq.write_table(pa.table({"src_txt": ["a", None, "b"]}), tmp_path / "a.parquet")
    found: dict[str, tuple[list[str], list[Any]]] = {}
    for source in (tmp_path / "a.csv", tmp_path / "a.txt.gz", tmp_path / "a.parquet", [{"src_txt": "a"}, "b"]):
        quarantine = Quarantine(0.7)
        rows = load_rows(source, quarantine=quarantine)
        where = quarantine.rows[0]["file"].rpartition("/")[2]
        found[where] = rows["src_txt"][:], [row.get("line", row.get("row")) for row in quarantine.rows]
    assert found == {
        "a.csv": (["a", "e\nf"], [3, 4, 5, 6]),
        "a.txt.gz": (["a", "d"], [2, 3]),
        "a.parquet": (["a", "b"], [2]),
        "the given data": (["a"], [2]),
    }


def test_a_header_in_another_encoding_is_refused_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("文本\n春\n".encode("gbk"))
    with pytest.raises(DataError, match=r"a\.csv:1: byte 1 of the line"):
        load_rows(tmp_path / "a.csv", {"文本": "src_txt"}, quarantine=Quarantine(0.9))


def test_a_file_of_nothing_but_bad_rows_does_not_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_rows, "MAX_BAD_ROWS", 20)
    rows = [{"src_txt": ""}] * 30
    for quarantine in (None, Quarantine(0.99)):
        with pytest.raises(DataError, match=r"the given data: over 20 bad rows\n  the given data row 1: src_txt is"):
            load_rows(rows, quarantine=quarantine)


def test_long_rows_are_shortened_and_half_pairs_stay_readable(tmp_path: Path) -> None:
    quarantine = Quarantine(0.7)
    load_rows([{"src_txt": "a"}, {"src_txt": "x" * 10_000 + "\ud83d"}, {"src_txt": "\ud83d"}], quarantine=quarantine)
    quarantine.write(tmp_path / "list.jsonl")
    first, second = map(json.loads, (tmp_path / "list.jsonl").read_text(encoding="utf-8").splitlines())
    assert len(first["text"]) < 250
    assert first["text"].endswith("…")
    assert "\\ud83d" in ascii(second["text"])


def test_both_splits_of_a_folder_share_one_list(tmp_path: Path) -> None:
    write_mixed(tmp_path, "train.jsonl")
    write_mixed(tmp_path, "validation.jsonl")
    config = DataConfig(path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    quarantine = Quarantine(0.03)
    splits = load_splits(config, seed=0, quarantine=quarantine)
    assert [len(rows) for rows in splits.values()] == [97, 97]
    assert {Path(row["file"]).name for row in quarantine.rows} == {"train.jsonl", "validation.jsonl"}
    assert quarantine.counts()["src_txt is empty"] == 2


def test_prepare_writes_the_list_into_the_folder_and_the_run(tmp_path: Path, store: Path) -> None:
    source = write_mixed(tmp_path)
    arguments = [f"source={source}", "bad_rows=quarantine", "max_bad_rows=0.03", "tracking.log_system_metrics=false"]
    result = prepare(load_config("prepare", [*arguments, "output_dir=out"]))
    assert result.manifest["files"]["quarantine.jsonl"]["rows"] == 3
    assert result.manifest["files"]["quarantine.jsonl"]["sha256"] == sha256_of(store / "out" / "quarantine.jsonl")
    assert sum(len(read_jsonl(path)) for path in (store / "out").glob("*.jsonl.gz")) == 97
    run = mlflow.get_run(result.run_id)
    assert run.data.metrics["rows/quarantined"] == 3
    assert "1 × src_txt is empty" in run.data.tags["quarantined"]
    logged = mlflow.artifacts.load_text(f"runs:/{result.run_id}/quarantine.jsonl")
    assert logged == (store / "out" / "quarantine.jsonl").read_text(encoding="utf-8")
    assert prepare_rows(store / "out", str(source), {}, 0.02, 0.02, Quarantine(0.03)) == result.manifest
