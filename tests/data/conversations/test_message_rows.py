"""Conversations in the ways that people have them: read alike, and what can't be learnt from named by row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from modules.config.data import DataConfig, PrepareConfig
from modules.data.arrow import fingerprint
from modules.data.conversations.message_rows import stored_messages
from modules.data.corpora.folders import prepare_rows
from modules.data.quarantine import DataError, Quarantine
from modules.data.reading.headers import check_headers
from modules.data.rows import load_rows
from modules.data.splits import load_splits
from modules.system.jsonl import read_jsonl

TALKS = [
    [
        {"role": "system", "content": "用五言"},
        {"role": "user", "content": "春\n眠"},
        {"role": "assistant", "content": "不觉晓"},
        {"role": "user", "content": "再来"},
        {"role": "assistant", "content": " 处处\n闻啼鸟"},
    ],
    [{"role": "user", "content": "日"}, {"role": "assistant", "content": "依山尽"}],
]
ROWS = [
    {"src_txt": "再来", "tgt_txt": " 处处\n闻啼鸟", "messages": json.dumps(TALKS[0], ensure_ascii=False)},
    {"src_txt": "日", "tgt_txt": "依山尽", "messages": json.dumps(TALKS[1], ensure_ascii=False)},
]
SHARED = {"system": "system", "user": "human", "assistant": "gpt"}
SHARE_GPT = [[{"from": SHARED[m["role"]], "value": m["content"]} for m in talk] for talk in TALKS]


def write(folder: Path, kind: str, talks: list[Any], name: str = "messages") -> Path:
    path = folder / f"talks{kind}"
    if kind == ".jsonl":
        path.write_text("".join(json.dumps({name: talk, "id": 7}) + "\n" for talk in talks), encoding="utf-8")
    elif kind == ".json":
        path.write_text(json.dumps([{name: talk} for talk in talks], indent=1), encoding="utf-8")
    elif kind == ".parquet":
        pd.DataFrame({name: talks}).to_parquet(path)
    elif kind == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([[name], *([json.dumps(talk, ensure_ascii=False)] for talk in talks)])
    else:
        datasets.Dataset.from_dict({name: talks}).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".csv", ""])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, TALKS)
    assert load_rows(path).to_list() == ROWS
    assert load_rows(path, cache=tmp_path / "cache").to_list() == ROWS


TOLD = "用五言"


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".csv", "", "python"])
def test_a_system_message_may_have_a_column_of_its_own(tmp_path: Path, kind: str) -> None:
    """As in LLaMA-Factory's data; where it is empty, there is none."""
    columns = {"conversations": [SHARE_GPT[0][1:], SHARE_GPT[1]], "system": [TOLD, ""], "tools": ["", "[]"]}
    path = tmp_path / f"talks{kind}"
    frame = pd.DataFrame(columns)
    if kind == ".jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    elif kind == ".parquet":
        frame.assign(system=[TOLD, None]).to_parquet(path)
    elif kind == ".csv":
        frame.assign(conversations=frame["conversations"].map(json.dumps)).to_csv(path, index=False)
    elif kind == "":
        datasets.Dataset.from_dict(columns).save_to_disk(str(path))
    source = columns if kind == "python" else str(path)
    assert load_rows(source, {"conversations": "messages"}).to_list() == ROWS
    if kind != "python":
        assert load_rows(source, {"conversations": "messages"}, cache=tmp_path / "cache").to_list() == ROWS
        manifest = prepare_rows(tmp_path / "folder", str(path), {"conversations": "messages"}, 0, 0)
        assert manifest["columns not kept"] == ["tools"]
        assert TALKS[0] in [row["messages"] for row in read_jsonl(tmp_path / "folder" / "train.jsonl.gz")]


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"system": "用七言"}, "messages has a system message, and another in the column 'system'; keep one"),
        ({"system": 5}, r"messages has a column 'system' beside it that isn't text \(5\)"),
        ({"system": "\ud800"}, "messages has a column 'system' beside it that holds half a surrogate pair"),
        ({"tools": [{"type": "function"}]}, "messages has a column 'tools' beside it, and tools aren't done here"),
        ({"tools": '[{"name": "f"}]'}, "messages has a column 'tools' beside it, and tools aren't done here"),
    ],
)
def test_what_stands_beside_a_conversation_is_never_passed_over(beside: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"the given data row 2: {reason}"):
        load_rows([{"messages": TALKS[1], "system": None}, {"messages": TALKS[0], **beside}])
    assert load_rows([{"messages": TALKS[0], "system": TOLD}]).to_list() == ROWS[:1]  # said twice
    assert load_rows([{"src_txt": "春", **beside}]).to_list() == [{"src_txt": "春"}]  # no conversation


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".csv", ""])
def test_share_gpt_by_its_column(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, SHARE_GPT, "conversations")
    assert load_rows(path, {"conversations": "messages"}).to_list() == ROWS
    with pytest.raises(DataError, match="if 'conversations' holds .* give data.columns.conversations=messages"):
        load_rows(path)


def test_rows_from_python() -> None:
    assert load_rows([{"messages": talk} for talk in TALKS]).to_list() == ROWS
    assert load_rows({"messages": TALKS}).to_list() == ROWS
    assert load_rows(datasets.Dataset.from_dict({"messages": TALKS})).to_list() == ROWS
    columns = [{key: [m[key] for m in talk] for key in ("role", "content")} for talk in TALKS]
    assert load_rows({"messages": columns}).to_list() == ROWS
    frame = pd.DataFrame({"messages": TALKS})
    assert load_rows(datasets.Dataset.from_pandas(frame)).to_list() == ROWS


def test_the_same_conversations_have_the_same_digest(tmp_path: Path) -> None:
    found = {fingerprint(load_rows(write(tmp_path, kind, TALKS))) for kind in (".jsonl", ".parquet", ".csv")}
    assert len(found) == 1
    shorter = load_rows({"messages": [[*TALKS[0][:1], *TALKS[0][3:]], TALKS[1]]})
    assert fingerprint(shorter) not in found  # the last turns alone are the same


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


BAD = [
    ([{"role": "tool", "content": "x"}], "messages can't be used: a message has the role 'tool'; there is"),
    (said("春", "", "夏", "日"), r"messages has a message that is empty \(number 2\)"),
    (said("春", " \n"), r"messages has a message that is only white space \(number 2\)"),
    (said("春"), "messages has no assistant's message, and so nothing to learn"),
    (said("春", "日", "夏"), "messages ends with a user's message, which no answer follows"),
    (said("春", "日")[1:], "a message has the role assistant and comes first"),
    ([*said("春"), *said("夏", "日")], r"a message has the role user and comes after user.*\(number 2\)"),
    (said("春", "\ud800"), r"messages has a message that holds half a surrogate pair"),
    ([], r"messages can't be used: messages must be a list"),
    (None, "messages isn't a list of messages"),
    (5, r"messages isn't a list of messages \(5\)"),
    ("春", "messages is text that isn't JSON"),
    (str(said("春", "日")), "messages is a list as Python shows it, not JSON; write a .jsonl file, or json.dumps"),
    ("", "messages is empty"),
    ([{"from": "human", "value": "春", "content": "夏"}], "a message has 'value', which isn't done here"),
    ('{"role": "user", "content": "x"}', "messages isn't a list of messages"),
    (
        [*said("春"), {"role": "assistant", "content": "日", "weight": 0}],
        "a message has 'weight', which isn't done here",
    ),
    (
        [*said("春"), {"role": "assistant", "content": [{"type": "image_url"}]}],
        "a message content has a part of the type",
    ),
]


@pytest.mark.parametrize(("talk", "reason"), BAD)
def test_a_bad_row_is_named_and_may_be_left_out(talk: Any, reason: str) -> None:
    rows = [{"messages": TALKS[0]}, {"messages": talk}, {"messages": TALKS[1]}]
    with pytest.raises(DataError, match=rf"the given data row 2: .*{reason}"):
        load_rows(rows)
    quarantine = Quarantine(0.5)
    assert load_rows(rows, quarantine=quarantine).to_list() == ROWS
    assert len(quarantine.rows) == 1


def test_contents_in_parts_as_pandas_reads_them(tmp_path: Path) -> None:
    parts = [[{**message, "content": [{"type": "text", "text": message["content"]}]} for message in TALKS[1]]]
    path = write(tmp_path, ".parquet", parts)
    assert load_rows(path).to_list() == load_rows(pd.read_parquet(path).to_dict("records")).to_list() == ROWS[1:]


def test_messages_that_are_rows_themselves_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"messages": TALKS[0]}))
    with pytest.raises(DataError, match=r"its columns are 'role', 'content', as messages have; a row is a whole conv"):
        load_rows(tmp_path / "one.json")


def test_a_list_in_place_of_a_row_is_told_what_to_be(tmp_path: Path) -> None:
    lines = tmp_path / "talks.jsonl"
    for talks in (TALKS, SHARE_GPT):
        lines.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
        with pytest.raises(DataError, match=r'jsonl:2: a JSON list, not .*; write a conversation as {"messages": \['):
            load_rows(lines)
        with pytest.raises(DataError, match=r'row 1: a list, not an object .*; write a conversation as {"messages"'):
            load_rows(talks)  # type: ignore[arg-type]
    lines.write_text(json.dumps([{"src_txt": "春"}, {"src_txt": "秋"}]))
    with pytest.raises(DataError, match=r"jsonl:1: a JSON list, .*; write each of its objects as a row"):
        load_rows(lines)


def test_a_row_without_the_column_is_bad(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2: messages is missing"):
        load_rows([{"messages": TALKS[0]}, {"id": 5}])
    with pytest.raises(DataError, match=r"row 1: messages \(column 'conversations'\) is missing"):
        load_rows([{"id": 5}, {"conversations": SHARE_GPT[0]}], {"conversations": "messages"})


def test_conversations_beside_texts_must_be_told_apart() -> None:
    both = [{"messages": TALKS[1], "src_txt": "甲", "tgt_txt": "乙"}]
    with pytest.raises(DataError, match="data.columns.messages=messages or data.columns.src_txt=src_txt"):
        load_rows(both)
    assert load_rows(both, {"messages": "messages"}).to_list() == ROWS[1:]
    assert load_rows(both, {"src_txt": "src_txt"}).to_list() == [{"src_txt": "甲", "tgt_txt": "乙"}]
    late = [{"messages": TALKS[1]}, {"messages": TALKS[1], "src_txt": "甲"}]
    with pytest.raises(DataError, match="has conversations"):
        load_rows(late)
    with pytest.raises(DataError, match="'a' is mapped to messages and 'b' to src_txt"):
        load_rows(both, {"a": "messages", "b": "src_txt"})


def test_a_column_of_that_name_may_be_mapped_to_a_text() -> None:
    assert load_rows([{"messages": "甲"}], {"messages": "src_txt"}).to_list() == [{"src_txt": "甲"}]


def test_the_first_rows_tell_before_any_work(tmp_path: Path) -> None:
    path = str(write(tmp_path, ".parquet", SHARE_GPT, "conversations"))
    with pytest.raises(DataError, match=r"give columns\.conversations=messages"):
        check_headers(PrepareConfig(source=path))
    check_headers(PrepareConfig(source=path, columns={"conversations": "messages"}))
    check_headers(PrepareConfig(source=str(write(tmp_path, ".jsonl", TALKS))))


def test_all_splits_are_conversations_or_none(tmp_path: Path) -> None:
    train = write(tmp_path, ".jsonl", TALKS)
    other = tmp_path / "pairs.jsonl"
    other.write_text('{"src_txt": "a", "tgt_txt": "b"}\n')
    with pytest.raises(DataError, match=r"conversations \(messages\), but .*: pairs \(src_txt and tgt_txt\)"):
        load_splits(DataConfig(path=str(train), validation_path=str(other)), 0)


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_prepare_writes_conversations_that_read_as_they_were(tmp_path: Path, kind: str) -> None:
    talks = [[*TALKS[0][:1], *said(f"第{n}问，甲乙丙丁", f"第{n}答", "谢谢", "不客气")] for n in range(40)]
    path = write(tmp_path, kind, [*talks, talks[0]])
    manifest = prepare_rows(tmp_path / "folder", str(path), {}, 0.1, 0.1)
    files = {name: read_jsonl(tmp_path / "folder" / f"{name}.jsonl.gz") for name in ("train", "validation", "test")}
    assert all(row.keys() == {"messages"} for rows in files.values() for row in rows)
    found = sorted((row["messages"] for rows in files.values() for row in rows), key=str)
    assert found == sorted(talks, key=str)
    assert manifest["columns"] == ["messages"]
    assert manifest["exact copies dropped"] == 1
    assert 1 <= len(files["test"]) <= 12  # by all that is asked, and not by the last question, the same in all
    loaded = load_splits(DataConfig(path=str(tmp_path / "folder")), 0)
    assert loaded["train"].column_names == ["src_txt", "tgt_txt", "messages"]


def test_a_shared_system_message_makes_no_near_copies(tmp_path: Path) -> None:
    system = {"role": "system", "content": "你是一位唐代诗人，只用五言绝句回答，不写别的，也不解释。" * 3}
    questions = ["春天的山里有什么花开", "秋夜独坐听见了谁的笛", "塞外雪中将军何时归来"]
    path = write(tmp_path, ".jsonl", [[system, *said(text, "一样的回答是这样的")] for text in questions])
    manifest = prepare_rows(tmp_path / "folder", str(path), {}, 0.3, 0.3)
    assert manifest["near copies"]["rows"] == 0


def test_near_copies_in_a_split_are_told_apart_by_all_their_answers(tmp_path: Path) -> None:
    asked = "请写一首春天的五言绝句，要有山有水"
    texts = ["白日依山尽黄河入海流", "松下问童子言师采药去", "白日依山尽黄河入海溜"]
    path = write(tmp_path, ".jsonl", [said(f"{asked}{n}", text, "谢谢", "不客气") for n, text in enumerate(texts)])
    manifest = prepare_rows(tmp_path / "folder", str(path), {}, 0, 0, near_copies="drop")
    assert manifest["near copies dropped"] == 1
    rows = load_rows(tmp_path / "folder" / "train.jsonl.gz")
    assert [stored_messages(row)[1].text for row in rows["messages"]] == texts[:2]
