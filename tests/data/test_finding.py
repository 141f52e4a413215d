"""Files by their names and by how they begin: of which split, of which kind, and which of several a bad row is in."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from modules.data import rows
from modules.data.quarantine import DataError, Quarantine
from modules.data.reading.finding import split_files
from modules.data.rows import load_rows
from modules.data.sources import has_split
from tests.data.test_reading import PAIR, write


@pytest.mark.parametrize(
    "names",
    [
        ("trainset.jsonl", "testset.jsonl"),
        ("训练集.jsonl", "测试集.jsonl", "验证集.jsonl"),
        ("唐诗训练.csv", "唐诗测试.csv"),
        ("TRAIN1.csv", "Test1.csv"),
        ("traindata/a.jsonl", "TESTDATA/a.jsonl", "devset/b.jsonl"),
        ("poemsTrain.csv", "poemsTest.csv", "poemsVal.csv"),
        ("诗train.csv", "诗test.csv"),
        ("ｔｒａｉｎ.csv", "ｔｅｓｔ.csv"),
        ("poems-train/a.csv", "poems-test/a.csv"),
    ],
)
def test_names_of_splits_are_told_however_they_are_written(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, name, [{"src_txt": name}])
    for split, name in zip(("train", "test", "validation"), names, strict=False):
        assert load_rows(tmp_path, split=split).to_list() == [{"src_txt": name}]
    assert has_split(tmp_path, "validation") == (len(names) == 3)
    if "/" not in names[0]:
        with pytest.raises(DataError, match="names files of train and"):
            load_rows(f"{tmp_path}/*{Path(names[0]).suffix}")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("poems.csv", "poemstest.csv"), r"poemstest\.csv may hold rows for test: name the files train"),
        (("poems.csv", "testpoems.csv"), "testpoems.csv may hold rows for test"),
        (("poems.csv", "more/devpoems.csv"), "more: devpoems.csv may hold rows for validation"),
        (("poems.csv", "mytest/a.csv"), "mytest may hold rows for test"),
        (("train/a.csv", "train/testpoems.csv"), "train: testpoems.csv may hold rows for test"),
        (("poems.csv", "poems-test.csv"), "no file for split 'train'"),
        (("train-test.csv",), "train-test.csv: of train or of test"),
    ],
)
def test_a_folder_that_may_hold_test_rows_is_not_trained_on_whole(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, name, [{"src_txt": name}])
    with pytest.raises(DataError, match=message):
        load_rows(tmp_path)
    if len(names) == 2:
        with pytest.raises(DataError, match="names files of (test|validation) and others|files of train and test"):
            load_rows(f"{tmp_path}/**/*.csv")
        assert len(load_rows(f"[{','.join(f'{tmp_path}/{name}' for name in names)}]")) == 2


def test_words_that_only_end_like_a_split_are_none(tmp_path: Path) -> None:
    for name in ("latest", "contest", "medieval", "device", "唐诗", "part1"):
        write(tmp_path, f"{name}.csv", [{"src_txt": name}])
    assert len(load_rows(tmp_path)) == len(load_rows(f"{tmp_path}/*.csv")) == 6


def test_files_of_a_folder_for_one_split_may_say_so(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("train_a.csv", "trainpoems.csv"):
        write(tmp_path / "train", name, [{"src_txt": name}])
    assert len(load_rows(tmp_path)) == 2


def test_a_bad_row_before_the_last_file_is_named_with_its_own(tmp_path: Path) -> None:
    """Files are so short that one batch spans them."""
    for name, bad in (("a", 2), ("b", 1), ("c", 0)):
        write(tmp_path, f"{name}.jsonl", [{"src_txt": "春"}] * 3 + [{"src_txt": ""}] * bad)
    quarantine = Quarantine(0.5)
    assert len(load_rows(tmp_path, quarantine=quarantine)) == 9
    found = [(Path(row["file"]).name, row["line"]) for row in quarantine.rows]
    assert found == [("a.jsonl", 4), ("a.jsonl", 5), ("b.jsonl", 4)]
    with pytest.raises(DataError, match=r"a\.jsonl:4: .*\n.*a\.jsonl:5: .*\n.*b\.jsonl:4: "):
        load_rows(tmp_path)


def test_a_column_named_otherwise_in_one_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", [PAIR])
    write(tmp_path, "b.jsonl", [{"src_txt": "春", "Tgt_txt": "花"}])
    with pytest.raises(DataError, match=r"b\.jsonl:1: tgt_txt is missing \(but there is 'Tgt_txt': name the column"):
        load_rows(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "txt"])
@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"PAR1\x15\x04", "a Parquet file; rename it to .parquet"),
        (gzip.compress(b"src_txt", mtime=0), "packed by gzip; add .gz"),
        (b"PK\x03\x04\x14\0", "a zip archive, or an Excel workbook"),
        (b"%PDF-1.7\n\xe2\xe3", "a PDF"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_beginning(tmp_path: Path, kind: str, head: bytes, said: str) -> None:
    (tmp_path / f"a.{kind}").write_bytes(head)
    with pytest.raises(DataError, match=rf"a\.{kind} is {said}"):
        load_rows(tmp_path / f"a.{kind}")


def test_a_file_rewritten_while_it_is_read_is_not_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "a.jsonl", [PAIR] * 3)
    before = rows.content_of

    def half_written(files: list[Path]) -> list[tuple[str, str]]:
        found = before(files)
        path.write_text('{"src_txt": "春", "tg', encoding="utf-8")
        return found

    monkeypatch.setattr(rows, "content_of", half_written)
    with pytest.raises(DataError, match="changed while it was read"):
        load_rows(path, cache=tmp_path / "cache")


@pytest.mark.parametrize("line", ["sep=,", '"sep=;"', ",,"])
def test_what_a_spreadsheet_puts_before_the_header_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.csv").write_text(f"{line}\r\nsrc_txt,tgt_txt\r\n春,花\r\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv:1: .* delete"):
        load_rows(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("beside", "found"),
    [
        (("valid_ids.txt", "test_predictions.txt"), {"train": "train.csv"}),
        (("eval.csv", "test.csv"), {"train": "train.csv", "test": "test.csv"}),
        (("eval.csv",), {"train": "train.csv", "test": "eval.csv"}),
        (("train/notes.json",), {"train": "train.csv"}),
    ],
)
def test_what_stands_beside_files_of_splits_is_none(
    tmp_path: Path, beside: tuple[str, ...], found: dict[str, str]
) -> None:
    for name in ("train.csv", *beside):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, name, [{"src_txt": name}])
    present = {split: split_files(tmp_path, split) for split in ("train", "validation", "test")}
    assert {split: path.name for split, paths in present.items() for path in paths} == found


def test_a_column_of_objects_is_no_list_of_rows(tmp_path: Path) -> None:
    (tmp_path / "columns.json").write_text('{"src_txt": ["春", "秋"], "meta": [{"id": 1}, {"id": 2}]}')
    assert load_rows(tmp_path / "columns.json")["src_txt"][:] == ["春", "秋"]


def test_a_note_in_quotes_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text('src_txt,备注\n甲, "乙" 说\n')
    assert load_rows(tmp_path / "notes.csv").to_list() == [{"src_txt": "甲"}]
    (tmp_path / "texts.csv").write_text('备注,src_txt\n甲, "乙"\n')
    with pytest.raises(DataError, match="a blank before a quote"):
        load_rows(tmp_path / "texts.csv")
