"""Users' clones of public repositories become clean rows; sentences become the chapters that they were cut from."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from modules.config.data import CLONES, PrepareConfig
from modules.config.loader import ConfigError, load_config
from modules.data.corpora.folders import prepare_rows
from modules.data.corpora.prose.chapters import good_pairs
from modules.data.corpora.prose.clone_files import FOLDERS
from modules.data.corpora.prose.clone_sets import HELD_OUT, SETS, places_of, prepare_clone
from modules.data.corpora.prose.markdown_text import is_prose, plain_lines
from modules.data.corpora.prose.running_text import running_text
from modules.data.corpora.verse import SPLITS
from modules.data.quarantine import DataError
from modules.data.reading.headers import check_headers
from modules.system.jsonl import read_jsonl

ROOT = Path(__file__).parents[3]


def ignore(step: str, done: float) -> None:
    """Progress that nobody watches."""


def sentence(number: int, length: int = 12) -> str:
    letters = random.Random(number)
    return "".join(chr(letters.randrange(0x4E00, 0x9FA5)) for _ in range(length)) + "。"


def translated(source: str) -> str:
    """Shares all characters but is longer, as a translation is."""
    return f"也就是说{source[:-1]}了。"


def chapter(number: int, lines: int = 4) -> list[tuple[str, str]]:
    sources = [sentence(100 * number + line) for line in range(lines)]
    return [(source, translated(source)) for source in sources]


def write_chapters(clone: Path, chapters: dict[str, list[tuple[str, str]]]) -> Path:
    for label, pairs in chapters.items():
        folder = clone / "双语数据" / label
        folder.mkdir(parents=True)
        for name, lines in zip(("source.txt", "target.txt"), zip(*pairs, strict=True), strict=True):
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "bitext.txt").write_text("古文：不读\n", encoding="utf-8")
    return clone


def chapters(count: int = 40) -> dict[str, list[tuple[str, str]]]:
    return {f"书{number % 5}/章{number}": chapter(number) for number in range(count)}


def prepared(tmp_path: Path, source: str, clone: Path, **more: Any) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    config = PrepareConfig(source=source, archive=str(clone), **more)
    assert not list(config.complaints())
    folder = tmp_path / f"{source}-{more.get('join')}"
    manifest = prepare_clone(config, folder, ignore)
    return manifest, {name: read_jsonl(folder / f"{name}.jsonl.gz") for name in SPLITS}


def test_each_clone_has_a_reader() -> None:
    assert set(CLONES) == set(FOLDERS) == set(SETS)


# --- classical and modern ---


def test_chapters_become_pairs_in_their_order(tmp_path: Path) -> None:
    clone = write_chapters(tmp_path / "clone", chapters())
    manifest, splits = prepared(tmp_path, "classical_modern", clone)
    found: dict[str, list[Any]] = {}
    for rows in splits.values():
        for row in rows:
            found.setdefault(row["group"], []).append((row["src_txt"], row["tgt_txt"]))
    assert found == chapters()
    of_groups = [{row["group"] for row in rows} for rows in splits.values()]
    assert all(of_groups)
    assert sum(map(len, of_groups)) == len(found)
    assert manifest["licence"].startswith("MIT")
    assert manifest["repository"] == "github.com/NiuTrans/Classical-Modern"
    assert manifest["counts"] == {"chapters": 40, "pairs read": 160}


def test_what_is_pretrained_on_has_no_chapter_that_translations_are_tested_on(tmp_path: Path) -> None:
    clone = write_chapters(tmp_path / "clone", chapters() | {"书0/坏": [(sentence(1), "别的完全不同"), ("", "甲")]})
    pairs, modern, classical = (
        {name: {row["group"] for row in rows} for name, rows in splits.items()}
        for _, splits in (
            prepared(tmp_path, "classical_modern", clone, join=join) for join in (None, "tgt_txt", "src_txt")
        )
    )
    for name in SPLITS:
        assert modern[name] - {"书0/坏"} == classical[name] - {"书0/坏"} == pairs[name]


def test_a_side_becomes_whole_chapters(tmp_path: Path) -> None:
    clone = write_chapters(tmp_path / "clone", chapters())
    _, splits = prepared(tmp_path, "classical_modern", clone, join="tgt_txt")
    found = {row["group"]: row["src_txt"] for rows in splits.values() for row in rows}
    assert found == {label: "".join(target for _, target in pairs) for label, pairs in chapters().items()}
    assert all(set(row) == {"src_txt", "group"} for rows in splits.values() for row in rows)


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        ("学而时习之，不亦说乎？", "", "pairs with an empty side"),
        ("……", "什么也没有说。", "pairs with an empty side"),
        ("克己。", "克制自己，" * 6, "pairs with one side over 5 times as long"),
        ("有朋自远方来，不亦乐乎？", "朋友从很远之处赶到这里，多么快活呀！" + "啊" * 9, ""),
        ("赛典赤赡思丁，一名乌马儿。", "天地玄黄宇宙洪荒日月盈昃。", "pairs that share under 20% of the characters"),
    ],
)
def test_pairs_that_do_not_translate_each_other_are_left_out(source: str, target: str, why: str) -> None:
    counts: Counter[str] = Counter()
    kept = good_pairs([*chapter(1), (source, target)], counts)
    assert len(kept) == 4 + (not why)
    assert counts == {"pairs read": 5} | ({why: 1} if why else {})


@pytest.mark.parametrize("by", [1, -1])
def test_a_chapter_that_is_moved_by_a_line_is_left_out(by: int) -> None:
    sources, targets = zip(*chapter(1, 6), strict=True)
    moved = list(zip(sources, targets[by:] + targets[:by], strict=True))
    counts: Counter[str] = Counter()
    assert good_pairs(moved, counts) == []
    assert counts["pairs of chapters that fit better moved by a line"] == 6


def test_blanks_where_quotation_marks_were_are_gone(tmp_path: Path) -> None:
    more = {"书9/曰": [(" 子曰： 学而时习之， 不亦说乎？ ", "孔子 说： 学习并 且按时温习，不也快乐吗？ OK then ")]}
    _, splits = prepared(tmp_path, "classical_modern", write_chapters(tmp_path / "clone", chapters() | more))
    (row,) = [row for rows in splits.values() for row in rows if row["group"] == "书9/曰"]
    assert (row["src_txt"], row["tgt_txt"]) == (
        "子曰：学而时习之，不亦说乎？",
        "孔子说：学习并且按时温习，不也快乐吗？OK then",
    )


def test_what_models_chinese_is_tested_on_is_never_a_training_row() -> None:
    """Whatever else a clone holds by then."""
    lines = [line.split("\t") for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    for source in SETS:
        expected = {label: split for of, split, label in lines if of == source}
        others = {f"{source} {number}": "train" for number in range(2_000)}
        assert places_of([*others, *expected], source) == others | expected
        assert set(places_of(list(others), source).values()) == set(SPLITS)
        tested = {label: split for label, split in expected.items() if split == "test"}
        partial = places_of([*others, *tested], source)
        assert {label: partial[label] for label in tested} == tested
        assert set(partial.values()) == set(SPLITS)


def test_near_copies_of_held_out_rows_are_not_trained_on(tmp_path: Path) -> None:
    whole = chapters()
    places = places_of(list(whole), "classical_modern")
    held_out, trained = (next(label for label in whole if places[label] == name) for name in ("test", "train"))
    copy = [(source.replace("。", "也。"), target) for source, target in whole[held_out]]
    manifest, splits = prepared(
        tmp_path, "classical_modern", write_chapters(tmp_path / "clone", {**whole, trained: [*whole[trained], *copy]})
    )
    assert manifest["near copies dropped"] == len(copy)
    assert not {source for source, _ in copy}.intersection(row["src_txt"] for row in splits["train"])


def test_what_a_clone_may_hold_beside_chapters_does_no_harm(tmp_path: Path) -> None:
    clone = write_chapters(tmp_path / "clone", chapters())
    (tmp_path / "secret.txt").write_text("秘密\n" * 4, encoding="utf-8")
    for name in ("linked", "uneven", "bytes", "alone"):
        (clone / "双语数据" / "书0" / name).mkdir()
        (clone / "双语数据" / "书0" / name / "target.txt").write_text("甲\n", encoding="utf-8")
    (clone / "双语数据" / "书0" / "linked" / "source.txt").symlink_to(tmp_path / "secret.txt")
    (clone / "双语数据" / "书0" / "uneven" / "source.txt").write_text("甲\n乙\n", encoding="utf-8")
    (clone / "双语数据" / "书0" / "bytes" / "source.txt").write_bytes("甲".encode("gbk"))
    os.mkfifo(clone / "双语数据" / "书0" / "alone" / "source.txt")
    manifest, splits = prepared(tmp_path, "classical_modern", clone)
    assert sum(map(len, splits.values())) == 160
    assert manifest["counts"]["files that aren't UTF-8"] == 1
    assert manifest["counts"]["chapters whose sides differ in lines"] == 2


# --- articles and laws ---

ARTICLE = """[#]: collector: "(lujun9972)"
[#]: url: "https://linux.cn/article-1.html"

为 Linux 选择打印机
======

> Linux 为打印机提供了*广泛*的支持。

![题图](https://example.org/a.png)

大多数发行版都用 [CUPS][1]，见[它的 `手册`](https://example.org/m)。**请看** sql_mode 与 __init__ &amp; `lsusb`：

```
$ lsusb  # 列出所有的设备
```

[![按钮](https://example.org/b.png)][2]

### 检查你的连接 ###

1. 打开终端
- 输入命令
    sudo apt-get install indicator-multiload

| 表 | 格 |
|---|---|
This paragraph was not translated at all, so 它 goes.
<p>段落</p><!-- 注释
两行 --><!-- 又一行 -->
（题图：甲乙）

--------------------------------------------------------------------------------

via: https://opensource.com/article

译者：[某人](https://github.com/x)
本文由 LCTT 原创编译
"""

PLAIN = [
    "为 Linux 选择打印机",
    "Linux 为打印机提供了广泛的支持。",
    "大多数发行版都用 CUPS，见它的 手册。请看 sql_mode 与 init & lsusb：",
    "检查你的连接",
    "打开终端",
    "输入命令",
    "段落",
]


def test_markdown_becomes_paragraphs() -> None:
    assert [line for line in plain_lines(ARTICLE) if is_prose(line, 0.3)] == PLAIN


def long_text(number: int) -> str:
    return "\n\n".join(sentence(1000 * number + line, 40) for line in range(8))


def test_articles_are_grouped_by_title_wherever_they_stand(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for number in range(30):
        for place in ("published/202401", "translated/tech") if number == 3 else ("published/202401",):
            (clone / place).mkdir(parents=True, exist_ok=True)
            text = f"标题\n====\n\n{long_text(number + 100 * ('tech' in place))}\n\nvia: x\n\n不读的话\n"
            (clone / place / f"2024010{number % 9} Title {number}.md").write_text(text, encoding="utf-8")
    (clone / "sources").mkdir()
    (clone / "sources" / "raw.md").write_text(long_text(77), encoding="utf-8")
    (clone / "published" / "short.md").write_text("太短了。", encoding="utf-8")
    manifest, splits = prepared(tmp_path, "articles", clone)
    rows = [row for part in splits.values() for row in part]
    assert sorted(Counter(row["group"] for row in rows).values()) == [1] * 29 + [2]
    assert all(row["src_txt"].startswith("标题\n") and "不读" not in row["src_txt"] for row in rows)
    assert manifest["counts"] == {"texts read": 32, "texts with under 200 Han characters": 1}
    assert sum(any(row["group"] == "Title 3" for row in part) for part in splits.values()) == 1


def test_versions_of_a_law_stay_in_one_split(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for folder in ("刑法", "行政法", "案例", "DLC"):
        (clone / folder).mkdir(parents=True)
    for number in range(30):
        law = f"# 第{number}号法\n\n2003年6月28日 通过\n\n<!-- INFO END -->\n\n## 第一章 总则\n\n{{}}"
        for year in (2003, 2020) if number == 7 else (2003,):
            text = law.format(long_text(number * 10000 + year))
            (clone / "刑法" / f"第{number}号法({year}-01-01).md").write_text(text, encoding="utf-8")
        (clone / "案例" / f"案例{number}.md").write_text(long_text(5000 + number), encoding="utf-8")
        (clone / "DLC" / f"某市条例{number}.md").write_text(long_text(6000 + number), encoding="utf-8")
    (clone / "行政法" / "_index.md").write_text("---\ntitle: 行政法\n---\n", encoding="utf-8")
    _, splits = prepared(tmp_path, "statutes", clone)
    rows = [row for part in splits.values() for row in part]
    assert Counter(row["group"] for row in rows) == {f"第{n}号法": 1 + (n == 7) for n in range(30)}
    assert rows[0]["src_txt"].split("\n")[1:3] == ["2003年6月28日 通过", "第一章 总则"]
    assert sum(any(row["group"] == "第7号法" for row in part) for part in splits.values()) == 1


# --- what is refused ---


@pytest.mark.parametrize("source", sorted(CLONES))
def test_what_is_no_clone_is_refused_before_anything_is_read(tmp_path: Path, source: str) -> None:
    (tmp_path / "file.zip").touch()
    for place, why in [
        (tmp_path / "no", "isn't there"),
        (tmp_path / "file.zip", "is a file"),
        (tmp_path, "has no folder"),
    ]:
        with pytest.raises(ValueError, match=f"{why}.*git clone --depth 1 https://github.com/{CLONES[source]}"):
            check_headers(PrepareConfig(source=source, archive=str(place)))


def test_a_link_in_place_of_the_clones_folder_is_not_followed(tmp_path: Path) -> None:
    write_chapters(tmp_path / "elsewhere", chapters())
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "双语数据").symlink_to(tmp_path / "elsewhere" / "双语数据")
    with pytest.raises(ValueError, match="has no folder 双语数据"):
        prepared(tmp_path, "classical_modern", tmp_path / "clone")


@pytest.mark.parametrize("text", ["<!--", "[", "![", "<a", " ", "*", "#", "\t#", "`", "(", "[a](", " x"])
def test_no_text_takes_longer_than_its_length(text: str) -> None:
    many = text * 200_000
    assert sum(len(line) for line in plain_lines(f"字{many}字\n" * 2)) <= 2 * len(many) + 4


def test_a_clone_of_too_little_says_so(tmp_path: Path) -> None:
    clone = write_chapters(tmp_path / "clone", chapters(2))
    with pytest.raises(DataError, match=r"2 usable texts leave no train rows; give the whole clone"):
        prepared(tmp_path, "classical_modern", clone)


def test_a_source_that_needs_a_clone_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"source=articles needs archive=FOLDER.*github.com/LCTT/TranslateProject"):
        load_config("prepare", ["source=articles"])
    Path("articles").mkdir()  # rows of the user's own that happen to be called so
    assert not load_config("prepare", ["source=articles"]).is_public


@pytest.mark.parametrize("arguments", [["source=sample"], ["source=traces"], ["source=articles", "archive=."]])
def test_join_belongs_to_rows_with_groups(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="join=src_txt goes with rows of your own or source=classical_modern"):
        load_config("prepare", [*arguments, "join=src_txt"])


# --- joining rows of one's own ---


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_of_a_group_become_one_text_wherever_they_stand(tmp_path: Path) -> None:
    rows = [
        {"q": sentence(10 * line + group), "a": sentence(1000 + 10 * line + group), "chapter": group}
        for line in range(3)
        for group in range(6)
    ]
    rows.append({"q": "独句。", "a": "单独的一句。", "chapter": ""})
    source = write_rows(tmp_path / "rows.jsonl", rows)
    columns = {"q": "src_txt", "a": "tgt_txt", "chapter": "group"}
    manifest = prepare_rows(tmp_path / "out", str(source), columns, 0.2, 0.2, join="tgt_txt")
    found = [row for name in SPLITS for row in read_jsonl(tmp_path / "out" / f"{name}.jsonl.gz")]
    expected = {"".join(row["a"] for row in rows if row["chapter"] == group) for group in range(6)} | {"单独的一句。"}
    assert {row["src_txt"] for row in found} == expected
    assert manifest["columns"] == ["src_txt", "group"]
    assert manifest["columns not kept"] == ["q"]


def test_splits_of_ones_own_stay_when_rows_are_joined(tmp_path: Path) -> None:
    for start, name in enumerate(SPLITS):
        write_rows(
            tmp_path / f"{name}.jsonl",
            [{"src_txt": sentence(100 * start + n), "group": f"{name} {n % 2}"} for n in range(6)],
        )
    prepare_rows(tmp_path / "out", str(tmp_path), {}, 0.2, 0.2, join="src_txt")
    for start, name in enumerate(SPLITS):
        texts = [row["src_txt"] for row in read_jsonl(tmp_path / "out" / f"{name}.jsonl.gz")]
        assert texts == ["".join(sentence(100 * start + n) for n in (p, p + 2, p + 4)) for p in (0, 1)]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"src_txt": "甲。"}, r"mine.join=src_txt: the rows have no column group \(mine.columns.YOUR_COLUMN=group nam"),
        ({"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}], "group": 1},
         "mine.join=src_txt: these rows are conversations"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_joined_are_refused(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [row] * 9)
    with pytest.raises(DataError, match=why):
        prepare_rows(tmp_path / "out", str(source), {}, 0.2, 0.2, section="mine.", join="src_txt")


@pytest.mark.parametrize(
    ("sentences", "text"),
    [
        (["学而时习之，", "不亦说乎？", "（善哉）", "又", "一"], "学而时习之，不亦说乎？（善哉）又\n一"),
        (["劝学", "君子曰：学不可以已。"], "劝学\n君子曰：学不可以已。"),
        (["It rains.", "We stay.", "都留下了。"], "It rains. We stay. 都留下了。"),
        ([], ""),
    ],
)
def test_running_text_has_line_ends_where_no_sentence_ends(sentences: list[str], text: str) -> None:
    assert running_text(sentences) == text


def test_the_command_makes_the_folder_that_its_source_is_called(tmp_path: Path) -> None:
    clone = write_chapters(tmp_path / "clone", chapters())
    store = f"tracking.tracking_uri=sqlite:///{tmp_path}/store.db"
    arguments = ["source=classical_modern", f"archive={clone}", store, "tracking.log_system_metrics=false"]
    command = [sys.executable, "-m", "pipelines.prepare", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(len(read_jsonl(tmp_path / f"prepared/classical_modern/{name}.jsonl.gz")) for name in SPLITS) == 160
    assert "groups" in done.stdout
