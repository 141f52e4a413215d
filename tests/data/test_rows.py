from __future__ import annotations

import csv
import gzip
import json
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.data.arrow import fingerprint
from modules.data.quarantine import DataError
from modules.data.reading import text_lines
from modules.data.rows import load_rows
from modules.data.sources import has_split

# Each of these is turned into something else, or dropped, by a reader that infers types.
SRC = ["NA", "null", "007", "1e5", "2024-01-02", "  白日依山尽，\u3000", 'say "hi", ok', "a\u2028b", "true", "\ufeffx"]
TGT = ["nan", "None", "0x1F", "1,000", "12:30", "黄河入海流。", "a\tb", "\x00z", "𠮷", "é"]
ROWS = [{"src_txt": s, "tgt_txt": t} for s, t in zip(SRC, TGT, strict=True)]
Write = Callable[[Path, list[dict[str, str]]], object]


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_gzip(write: Write) -> Write:
    def packed(path: Path, rows: list[dict[str, str]]) -> None:
        write(path, rows)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return packed


def write_columns(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text(json.dumps({name: [row[name] for row in rows] for name in rows[0]}))


FORMATS: dict[str, Write] = {
    "a.csv": write_csv,
    "a.CSV.gz": write_gzip(write_csv),
    "a.tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "bom.csv": lambda path, rows: (write_csv(path, rows), path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())),
    "a.jsonl": write_jsonl,
    "a.jsonl.gz": write_gzip(write_jsonl),
    "a.ndjson": write_jsonl,
    "list.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "columns.json": write_columns,
    "columns.json.gz": write_gzip(write_columns),
    "a.parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3),
    "saved": lambda path, rows: datasets.Dataset.from_list(rows).save_to_disk(path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    FORMATS[name](path, ROWS)
    got = load_rows(path)
    assert got.to_list() == ROWS
    assert got.features == {"src_txt": datasets.Value("string"), "tgt_txt": datasets.Value("string")}
    assert fingerprint(got) == fingerprint(load_rows(ROWS))
    assert load_rows(str(path), max_rows=4).to_list() == ROWS[:4]


def test_python_containers_and_datasets() -> None:
    reordered = datasets.Dataset.from_list([{**row, "id": 1} for row in ROWS]).select([3, 1])
    assert load_rows(reordered).to_list() == [ROWS[3], ROWS[1]]
    assert load_rows({"src_txt": SRC}).to_list() == [{"src_txt": text} for text in SRC]
    several = datasets.DatasetDict({"train": reordered, "test": reordered.select([1])})
    assert load_rows(several, split="test").to_list() == [ROWS[1]]
    assert has_split(several, "test")
    assert not has_split(several, "validation")


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_txt_is_one_row_a_line_and_blank_lines_are_skipped(tmp_path: Path, name: str) -> None:
    data = "\ufeff 白日\r\n\n \u3000\n黄河\u2028 ".encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert load_rows(tmp_path / name)["src_txt"][:] == [" 白日", "黄河\u2028 "]


def test_newlines_inside_values_stay_and_rows_are_numbered_by_their_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'src_txt,tgt_txt\r\n"a\nb\r\nc\rd",x\r\n\r\n"e\nf", \r\n')
    with pytest.raises(DataError, match=r"a\.csv:6: tgt_txt is only white space"):
        load_rows(path)
    assert load_rows(path, max_rows=1).to_list() == [{"src_txt": "a\nb\r\nc\rd", "tgt_txt": "x"}]


def test_columns_are_mapped_and_others_dropped() -> None:
    rows = [{"text1": "a", "text2": "b", "id": "7"}]
    assert load_rows(rows, {"text1": "src_txt"}).to_list() == [{"src_txt": "a"}]
    assert load_rows(rows, {"text2": "src_txt", "text1": "tgt_txt"}).to_list() == [{"src_txt": "b", "tgt_txt": "a"}]
    swapped = load_rows([{"src_txt": "a", "tgt_txt": "b"}], {"src_txt": "tgt_txt", "tgt_txt": "src_txt"})
    assert swapped.to_list() == [{"src_txt": "b", "tgt_txt": "a"}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text1": "source"}, r"data\.columns\.text1=source.*must be src_txt or tgt_txt"),
        ({"text1": "src_text"}, r"did you mean data\.columns\.text1=src_txt\?"),
        ({"text1": "src_txt", "text2": "src_txt"}, "both 'text1' and 'text2' are mapped to src_txt"),
        ({"nope": "tgt_txt"}, r"no column 'nope'.*; tgt_txt is there: leave data\.columns for it out"),
        ({"txet1": "src_txt"}, r"'text1', 'text2', 'tgt_txt'; did you mean data\.columns\.text1=src_txt\?"),
        ({"text1": "src_txt", "text2": "tgt_txt"}, r"two columns would become tgt_txt.*leave that setting out"),
        ({}, r"a\.csv has no column src_txt; .*'text1'.*data\.columns\.YOUR_COLUMN=src_txt"),
        ({"tgt_txt": "src_txt", "nope": "tgt_txt"}, "no column 'nope'"),
    ],
)
def test_wrong_mappings_name_the_columns_and_the_remedy(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    (tmp_path / "a.csv").write_text("text1,text2,tgt_txt\na,b,c\n")
    with pytest.raises(DataError, match=message):
        load_rows(tmp_path / "a.csv", columns)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a\.csv has no rows"),
        ("a.csv", "src_txt\n", r"a\.csv has no rows"),
        ("a.jsonl", "\n\n", r"a\.jsonl has no rows"),
        ("a.json", "[]", r"a\.json has no rows"),
        ("a.txt", " \n", r"a\.txt has no rows"),
        ("a.csv", "src_txt,src_txt\na,b\n", r"a\.csv:1: duplicate columns \['src_txt'\]; rename"),
        ("a.csv", "src_txt,b\na\n", r"a\.csv:2: 1 values for 2 columns; quote"),
        ("a.csv", 'src_txt\na\n"b\nc\n', r"a\.csv:3: a quote opened in this row is never closed.*close it"),
        ("a.csv", 'src_txt\n"b"c\n', r"a\.csv:2: not valid CSV.*double quotes"),
        ("a.csv", "src_txt\ra\rb\r", r"a\.csv:1: carriage return inside the line; .*tr"),
        ("a.csv", "src_txt\na\rb\nc\n", r"a\.csv:2: carriage return inside the line; .*tr"),
        ("a.txt", "a\rb\rc", r"a\.txt:1: carriage return inside the line; end the lines with"),
        ("a.csv", "src_txt,b\n\u3000,c\n", r"a\.csv:2: src_txt is only white space"),
        ("a.csv", 'src_txt,b\n"",c\n', r"a\.csv:2: src_txt is empty"),
        ("a.jsonl", '{"src_txt": "a"}\n{"src_txt": }\n', r"a\.jsonl:2: invalid JSON \(Expecting value at column 13"),
        ("a.jsonl", '{"src_txt": "a", "src_txt": "b"}', r"a\.jsonl:1: invalid JSON \(a key is given twice"),
        ("a.jsonl", '["a"]', r"a\.jsonl:1: a JSON list, not an object"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: invalid JSON"),
        ("a.jsonl", '{"src_txt": 7}', r"a\.jsonl:1: src_txt is a number, not a string \(7\)"),
        ("a.jsonl", '{"src_txt": true}', r"a\.jsonl:1: src_txt is a boolean, not a string \(True\)"),
        ("a.jsonl", '{"src_txt": ["a"]}', r"a\.jsonl:1: src_txt is a list"),
        ("a.jsonl", '{"src_txt": "\\ud83d"}', r"a\.jsonl:1: src_txt holds half a surrogate pair.* \('\\ud83d'\)"),
        ("a.jsonl", '{"src_txt":"a","tgt_txt":"b"}\n{"src_txt":"c"}', r"a\.jsonl:2: tgt_txt is missing"),
        ("a.json", '[{"src_txt": "a"},\n{"src_txt": null}]', r"a\.json row 2: src_txt is null, not a string"),
        ("a.json", '[{"src_txt": "a"},\n{"src_txt" "b"}]', r"a\.json:2: invalid JSON"),
        ("a.json", '{"src_txt": "a"}\n{"src_txt": "b"}', r"a\.json:2: .*one object a line belongs in a \.jsonl"),
        ("a.json", '{"src_txt": ["a"], "b": []}', r"a\.json: columns differ in length"),
        ("a.json", '{"src_txt": "a"}', r"a\.json: column 'src_txt' is a str, not a list"),
        ("a.json", '"a"', r"a\.json: a JSON str; write a list of objects"),
        ("a.xlsx", "x", r"a\.xlsx: unknown format; use one of \.csv"),
        ("a.csv.gz", "src_txt\na\n", r"a\.csv\.gz: not a complete gzip file"),
        ("a.parquet", "PAR1 no", r"a\.parquet: not a valid parquet file"),
    ],
)
def test_faulty_files_are_refused_with_place_and_reason(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(DataError, match=message) as caught:
        load_rows(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt", "a.json"])
def test_gbk_is_refused_with_line_byte_and_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("src_txt\nab白日\n".encode("gbk"))
    if name == "a.jsonl":
        (tmp_path / name).write_bytes(b'{"src_txt":"a"}\n' + b"ab\xb0\xd7")
    remedy = r":2: byte 3 of the line \(0xb0\) is not UTF-8; convert the file with iconv -f GBK -t UTF-8"
    with pytest.raises(DataError, match=name + remedy):
        load_rows(tmp_path / name)


def test_utf16_and_cut_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("src_txt\na\n".encode("utf-16"))
    with pytest.raises(DataError, match="iconv -f UTF-16 -t UTF-8"):
        load_rows(tmp_path / "a.csv")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(bytes(range(1, 128)) * 9)[:-9])
    with pytest.raises(DataError, match=r"a\.txt\.gz: not a complete gzip file.*download it again"):
        load_rows(tmp_path / "a.txt.gz")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_a_line_over_the_limit_is_refused_unread(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert text_lines.MAX_LINE_BYTES == 10_000_000
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 1_000_000)
    first = {"a.jsonl": '{"src_txt": "a"}', "a.csv": "src_txt", "a.txt": "a"}[name]
    (tmp_path / name).write_text(f"{first}\n" + "x" * 1_000_001)
    with pytest.raises(DataError, match=name + ":2: line over 1 MB; split it"):
        load_rows(tmp_path / name)


def test_a_long_value_under_the_limit_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("src_txt\n" + "x" * 200_000)
    assert load_rows(tmp_path / "a.csv")["src_txt"][0] == "x" * 200_000


def test_an_unclosed_quote_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 1000)
    (tmp_path / "a.csv").write_text('src_txt\na\n"b\n' + "c\n" * 1000)
    with pytest.raises(DataError, match=r"a\.csv:3: a quote opened in this row is never closed.*field limit"):
        load_rows(tmp_path / "a.csv")


def test_all_bad_rows_are_gathered_in_file_order(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("src_txt,tgt_txt\n,\ngood,x\nragged\n" + ",x\n" * 10)
    with pytest.raises(DataError) as caught:
        load_rows(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 12 bad rows"
    assert lines[1] == f"  {path}:2: src_txt is empty and tgt_txt is empty"
    assert lines[2].startswith(f"  {path}:4: 1 values for 2 columns")
    assert [line.split(": ")[0] for line in lines[3:6]] == [f"  {path}:{number}" for number in (5, 6, 7)]
    assert lines[6:] == [
        "  … and 7 more",
        "Correct or delete these rows, or leave them out (data.bad_rows=quarantine), then start again.",
    ]


def test_typed_columns_and_nulls_of_arrow_data(tmp_path: Path) -> None:
    pq.write_table(pa.table({"src_txt": [1, 2]}), tmp_path / "int.parquet")
    with pytest.raises(DataError, match=r"int\.parquet: column 'src_txt' has type int64, not string"):
        load_rows(tmp_path / "int.parquet")
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "null.parquet")
    with pytest.raises(DataError, match=r"null\.parquet row 2: src_txt \(column 'text'\) is null"):
        load_rows(tmp_path / "null.parquet", {"text": "src_txt"})
    with pytest.raises(DataError, match="the given dataset row 1: src_txt is null"):
        load_rows(datasets.Dataset.from_dict({"src_txt": [None]}))
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xb0\xd7"]).buffers())
    pq.write_table(pa.table({"src_txt": broken}), tmp_path / "gbk.parquet")
    with pytest.raises(DataError, match=r"gbk\.parquet row 1: src_txt holds bytes that aren't UTF-8"):
        load_rows(tmp_path / "gbk.parquet")
    labels = pa.table({"src_txt": pa.array(["a", "b", "a"]).dictionary_encode(), "image": [b"", b"", b""]})
    pq.write_table(labels, tmp_path / "dictionary.parquet")
    assert load_rows(tmp_path / "dictionary.parquet")["src_txt"][:] == ["a", "b", "a"]


EXTRAS = {"group": [3, 3, 4], "share": [0.5, 1.0, 2.5], "seen": [True, False, True], "slots": [["甲"], [], ["乙"]]}


@pytest.mark.parametrize("kind", ["parquet", "saved", "shuffled", "given"])
def test_extras_of_any_plain_type_are_taken_as_from_jsonl(tmp_path: Path, kind: str) -> None:
    columns = {"src_txt": ["一", "二", "三"], "label": ["甲", "乙", "丙"], **EXTRAS}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    dataset = datasets.Dataset.from_dict(columns)
    dataset.save_to_disk(tmp_path / "saved")
    source = {
        "parquet": tmp_path / "a.parquet",
        "saved": tmp_path / "saved",
        "shuffled": dataset.select([2, 0, 1]).select([1, 2, 0]),
        "given": dataset,
    }[kind]
    expected = load_rows(tmp_path / "a.jsonl", extras=["label", *EXTRAS]).to_list()
    assert load_rows(source, extras=["label", *EXTRAS]).to_list() == expected
    assert expected[0] == {
        "src_txt": "一",
        "group": "3",
        "label": "甲",
        "seen": "true",
        "share": "0.5",
        "slots": '["甲"]',
    }
    with pytest.raises(DataError, match="column 'group' has type int64, not string"):  # a text stays a text
        load_rows(source, {"group": "src_txt"}, extras=["slots"])


def test_an_extra_of_any_kind_is_kept_as_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"src_txt": ["一"], "group": [date(2024, 1, 2)]}), tmp_path / "a.parquet")
    assert load_rows(tmp_path / "a.parquet", extras=["group"])["group"][:] == ["2024-01-02"]
    given = [None, float("nan"), 1, 1.5, True, "甲", "", "\ud83d", [1], {"a": date(2024, 1, 2)}]
    rows: list[dict[str, object]] = [{"src_txt": "一", "group": value} for value in given] + [{"src_txt": "一"}]
    kept = ["", "", "1", "1.5", "true", "甲", "", "?", "[1]", '{"a": "2024-01-02"}', ""]
    assert load_rows(rows, extras=["group"])["group"][:] == kept  # type: ignore[arg-type]


def test_fingerprint_tells_contents_apart_and_nothing_else() -> None:
    rows = load_rows(ROWS)
    pieces = datasets.concatenate_datasets([rows.select(range(3)), rows.select(range(3, len(rows)))])
    assert fingerprint(pieces) == fingerprint(rows)
    assert fingerprint(rows.select([2, 5])) == fingerprint(load_rows([ROWS[2], ROWS[5]]))
    others: list[dict[str, list[str]]] = [
        {"src_txt": ["ab", "c"]},
        {"src_txt": ["a", "bc"]},
        {"src_txt": ["c", "ab"]},
        {"src_txt": ["abc"]},
        {"src_txt": ["a"], "tgt_txt": ["bc"]},
        {"src_txt": ["bc"], "tgt_txt": ["a"]},
    ]
    assert len({fingerprint(load_rows(other)) for other in others}) == len(others)
    with pytest.raises(ValueError, match="null"):
        fingerprint(datasets.Dataset.from_dict({"src_txt": ["a", None]}))
    with pytest.raises(ValueError, match="no column src_txt"):
        fingerprint(datasets.Dataset.from_dict({"text": ["a"]}))


def test_one_column_never_serves_as_both() -> None:
    with pytest.raises(DataError, match=r"src_txt mapped to tgt_txt alone.*data\.columns\.YOUR_COLUMN=src_txt"):
        load_rows([{"src_txt": "a"}], {"src_txt": "tgt_txt"})


def test_max_rows_below_one_is_refused() -> None:
    with pytest.raises(DataError, match="max_rows=0"):
        load_rows(ROWS, max_rows=0)


texts = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: bool(text) and not text.isspace())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({"src_txt": texts, "tgt_txt": texts}), min_size=1, max_size=5))
def test_any_text_survives_any_format(rows: list[dict[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.csv", "a.tsv", "a.jsonl", "list.json", "a.parquet"):
            FORMATS[name](Path(folder) / name, rows)
            assert load_rows(Path(folder) / name).to_list() == rows, name


def test_a_hint_never_remaps_a_column_that_is_mapped_already() -> None:
    with pytest.raises(DataError, match="no column 'text2'") as caught:
        load_rows({"text1": ["春"], "answer": ["秋"]}, {"text1": "src_txt", "text2": "tgt_txt"})
    assert "data.columns.text1" not in str(caught.value)
