"""Task data: what a package holds becomes split rows, nothing of it runs, and nothing leaks into the test."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.config.data import TASK_DATA, DataConfig
from modules.data.corpora import task_corpus
from modules.data.corpora.dedup import shingles
from modules.data.corpora.packages import Package, find_or_fetch, read_members
from modules.data.corpora.task_corpus import prepare_corpus
from modules.data.corpora.task_sets import CORPORA, answer_span, read_templates, window
from modules.data.corpora.verse import SPLITS
from modules.data.quarantine import DataError
from modules.data.splits import choose_places, groups_are_named, load_splits, related_rows
from modules.system.checksums import sha256_of
from modules.system.jsonl import read_jsonl

PACKAGE_ROWS = 200


def ignore(step: str, done: float) -> None:
    """Progress that nobody watches."""


def story(number: int) -> str:
    """Texts without eight characters in common."""
    letters = random.Random(number)
    return "".join(chr(letters.randrange(0x4E00, 0x9FA5)) for _ in range(30))


def parable(number: int, **change: Any) -> dict[str, Any]:
    prompt = (
        f"{story(number)}\nWhich moral is this story attempting to convey? Please respond.\n"
        f'A) 甲{number}。 B) 乙。 C) 丙。 D) 丁。 E) 戊。\nThe output should look like "A"'
    )
    return {"input": [{"content": "system"}, {"content": prompt}], "ideal": ["The final answer is: A"], **change}


def wheel(path: Path, rows: list[dict[str, Any]]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        packed.writestr(CORPORA["summarization"].members[0], content)
    return path


def sdist(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package-1.0/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def prepared(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: read_jsonl(folder / f"{split}.jsonl.gz") for split in SPLITS}  # type: ignore[misc]


def test_the_sources_that_the_configuration_names_are_the_corpora_there_are() -> None:
    assert set(TASK_DATA) == set(CORPORA)


# --- from rows to splits ---


def test_parables_become_pairs_that_keep_their_choices(tmp_path: Path) -> None:
    broken = parable(999, ideal=["I don't know"])
    rows = [*map(parable, range(PACKAGE_ROWS)), broken, parable(3)]
    manifest = prepare_corpus(CORPORA["summarization"], tmp_path / "out", wheel(tmp_path / "my.whl", rows), ignore)
    found = [row for rows in prepared(tmp_path / "out").values() for row in rows]
    assert {(row["src_txt"], row["tgt_txt"]) for row in found} == {(story(n), f"甲{n}。") for n in range(PACKAGE_ROWS)}
    assert all(row["choices"][row["answer"]] == row["tgt_txt"] and len(row["choices"]) == 5 for row in found)
    assert (manifest["counts"]["broken"], manifest["counts"]["exact copies"]) == (1, 1)
    assert (manifest["package"], manifest["licence"]) == ("a copy of one's own", "MIT")


def test_texts_told_twice_stay_in_one_split(tmp_path: Path) -> None:
    rows = [parable(number) for number in range(PACKAGE_ROWS)]
    for number, row in enumerate(
        rows[PACKAGE_ROWS // 2 :]
    ):  # its first 15 characters begin another story too: 8 shingles of 23
        content = row["input"][1]["content"]
        row["input"][1]["content"] = story(number)[:15] + content[15:]
    prepare_corpus(CORPORA["summarization"], tmp_path / "out", wheel(tmp_path / "my.whl", rows), ignore)
    splits = prepared(tmp_path / "out")
    beginnings = {split: {row["src_txt"][:15] for row in rows} for split, rows in splits.items()}
    assert all(splits.values())
    assert sum(map(len, beginnings.values())) == PACKAGE_ROWS // 2


def test_held_out_rows_are_one_a_source_with_all_its_targets(tmp_path: Path) -> None:
    acts = {
        "*".join(["Inform+景点+名称", f"Request+景点+{n}"]): [f"[Inform+景点+名称]{n}", f"{n}[Inform+景点+名称]"]
        for n in range(PACKAGE_ROWS)
    }
    content = json.dumps(acts, ensure_ascii=False).encode()
    archive = sdist(tmp_path / "my.tar.gz", dict.fromkeys(CORPORA["data_to_text"].members, content))
    prepare_corpus(CORPORA["data_to_text"], tmp_path / "out", archive, ignore)
    splits = prepared(tmp_path / "out")
    assert len(splits["train"]) == 2 * len({row["src_txt"] for row in splits["train"]})
    for row in splits["test"] + splits["validation"]:
        assert len(row["references"]) == 2
        assert row["tgt_txt"] == row["references"][0]
        assert row["slots"] == ["[Inform+景点+名称]"]
    acts_of = {split: {row["src_txt"].partition("：")[2] for row in rows} for split, rows in splits.items()}
    assert sum(map(len, acts_of.values())) == PACKAGE_ROWS  # both sides of an act are in one split


def test_templates_whose_placeholders_are_not_the_acts_are_left_out() -> None:
    user = {
        "": ["好"],
        "Inform+酒店+酒店设施+是*Inform+酒店+酒店设施+是*Request+酒店+酒店设施": [
            "[Inform+酒店+酒店设施+是1]和[Inform+酒店+酒店设施+是2]，[Request+酒店+酒店设施]？",
            "[Inform+酒店+酒店设施+是1]，[Request+酒店+酒店设施]？",
        ],
        "Inform+餐馆+评分+无*General+bye+none": ["没有", "没有"],
    }
    counts: Counter[str] = Counter()
    examples = read_templates([json.dumps(user).encode(), b"{}"], counts)
    assert [(example.source, example.columns["slots"]) for example in examples] == [
        (
            "用户：Inform+酒店+酒店设施+是1；Inform+酒店+酒店设施+是2；Request+酒店+酒店设施",
            ["[Inform+酒店+酒店设施+是1]", "[Inform+酒店+酒店设施+是2]", "[Request+酒店+酒店设施]"],
        ),
        ("用户：Inform+餐馆+评分+无；General+bye+none", []),
    ]
    assert counts == {"read": 5, "copies in an act": 1, "without an act": 1, "other placeholders": 1}


def squad(passages: list[tuple[str, list[tuple[str, str, int]]]]) -> bytes:
    paragraphs = [
        {
            "context": text,
            "qas": [{"question": q, "answers": [{"text": a, "answer_start": s}]} for q, a, s in questions],
        }
        for text, questions in passages
    ]
    return json.dumps({"data": [{"paragraphs": paragraphs}]}).encode()


def test_questions_get_their_passage_around_the_marked_answer(tmp_path: Path) -> None:
    passages = []
    for n in range(PACKAGE_ROWS):
        text = f"{story(n)}。【{story(n)[:3]}】答{n}案。{story(n + 500)}。"
        passages.append((text, [(f"问{n}？", f"答{n}案", 36), ("又问？", f"答{n}案", 36)]))
    passages.append((story(900), [("无？", "不在", 0)]))
    passages.append((f"\ud800{story(901)}", [("无？", story(901)[:3], 1)]))
    archive = tmp_path / "mine.json.gz"
    archive.write_bytes(gzip.compress(squad(passages)))
    manifest = prepare_corpus(CORPORA["question_generation"], tmp_path / "out", archive, ignore)
    splits = prepared(tmp_path / "out")
    assert all(row["references"] == [row["tgt_txt"], "又问？"] for row in splits["test"])
    row = next(row for row in splits["train"] if row["tgt_txt"] == "问1？")
    assert row["src_txt"] == f"{story(1)}。［{story(1)[:3]}］【答1案】。{story(501)}。"
    assert manifest["counts"]["broken, or its answer isn't in the passage"] == 2
    passages_of = {split: {row["group"] for row in rows} for split, rows in splits.items()}
    assert len(set().union(*passages_of.values())) == sum(map(len, passages_of.values())) == PACKAGE_ROWS
    counts = {split: len(groups) for split, groups in passages_of.items()}
    assert manifest["groups"] == {**counts, "rows of a group in train": {"validation": 0, "test": 0}}
    assert groups_are_named(tmp_path / "out")
    loaded = load_splits(DataConfig(path=str(tmp_path / "out")), 0, extras={"group"})
    assert related_rows(loaded, choose_places(DataConfig(path=str(tmp_path / "out")))) == {"validation": 0, "test": 0}


@given(st.text("甲乙。？", min_size=1, max_size=80), st.data())
def test_a_window_holds_the_answer_and_no_more_than_fits(passage: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(passage) - 1))
    end = data.draw(st.integers(start + 1, len(passage)))
    left, right = window(passage, start, end, size=20)
    assert 0 <= left <= start < end <= right <= len(passage)
    assert right - left <= max(20, end - start)
    if len(passage) <= 20:
        assert (left, right) == (0, len(passage))


def test_the_answer_is_the_one_that_most_gave_and_is_looked_for_where_its_offset_is_wrong() -> None:
    counts: Counter[str] = Counter()
    assert answer_span(
        "甲乙丙乙", [{"text": "丙", "answer_start": 2}] + 2 * [{"text": "乙", "answer_start": 3}], counts
    ) == (3, 4)
    assert not counts
    assert answer_span("甲乙丙乙", [{"text": "丙", "answer_start": 0}], counts) == (2, 3)
    assert counts == {"answer's offset mended": 1}
    assert answer_span("甲乙丙乙", [{"text": "乙", "answer_start": 0}], counts) == (1, 2)  # the blank before
    assert answer_span("乙甲丙乙", [{"text": "丁", "answer_start": 0}, {"text": "", "answer_start": 0}], counts) is None


# --- the folder ---


def test_a_second_call_needs_no_archive_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = CORPORA["summarization"]
    assert corpus.package
    archive = wheel(tmp_path / corpus.package.file, [*map(parable, range(PACKAGE_ROWS))])
    published = replace(corpus, package=replace(corpus.package, sha256=sha256_of(archive)))
    first = prepare_corpus(published, tmp_path / "out", None, ignore)
    assert first["package"] == "evals 3.0.1.post1"
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    archive.unlink()
    assert prepare_corpus(published, tmp_path / "out", None, ignore) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    with pytest.raises(DataError, match="holds other data than summarization gives now"):
        prepare_corpus(corpus, tmp_path / "out", wheel(tmp_path / "other.whl", [parable(1)]), ignore)


def test_an_interrupted_call_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, archive = CORPORA["summarization"], wheel(tmp_path / "my.whl", [*map(parable, range(PACKAGE_ROWS))])

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modules.data.corpora.manifest.write_jsonl", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus(corpus, tmp_path / "out", archive, ignore)
    assert prepare_corpus(corpus, tmp_path / "out", archive, ignore)["files"]["train.jsonl.gz"]["rows"]


# --- what people give ---


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("summarization", None, r"no file at .*x\.bin: archive= takes evals-3\.0\.1\.post1-py3-none-any\.whl"),
        ("summarization", b"nothing", r"x\.bin is not a readable package \(.*\): fetch it again"),
        ("question_generation", None, r"no file at .*x\.bin: archive= takes SQuAD's layout"),
        ("question_generation", b"[1]", r"x\.bin doesn't hold SQuAD's layout .* \(TypeError"),
        ("question_generation", b'{"data": []}', r"0 usable examples leave no train rows; give the whole set"),
    ],
)
def test_what_is_no_archive_is_named(source: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    archive = tmp_path / "x.bin"
    if content is not None:
        archive.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare_corpus(CORPORA[source], tmp_path / "out", archive, ignore)
    assert not (tmp_path / "out").exists()


def test_the_published_name_must_be_the_published_file(tmp_path: Path) -> None:
    archive = wheel(tmp_path / "evals-3.0.1.post1-py3-none-any.whl", [parable(1)])
    for given_archive in (archive, None):
        with pytest.raises(ValueError, match=r"is damaged: its SHA-256 is .*…, evals 3\.0\.1\.post1 has 0abcb2051303…"):
            prepare_corpus(CORPORA["summarization"], tmp_path / "out", given_archive, ignore)


def test_another_package_is_named_by_what_it_lacks(tmp_path: Path) -> None:
    archive = sdist(tmp_path / "my.tar.gz", {"data/other.json": b"[]"})
    with pytest.raises(ValueError, match=r"my\.tar\.gz has no data/alpaca_zh_demo\.json: it is not the package"):
        prepare_corpus(CORPORA["instructions"], tmp_path / "out", archive, ignore)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_that_unfolds_too_far_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.data.corpora.packages.MAX_FILE", 1000)
    archive = sdist(tmp_path / "a.tar.gz", {"big": b" " * 1001})
    if kind == "zip":
        archive = tmp_path / "a.whl"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("big", b" " * 1001)
    with pytest.raises(ValueError, match=r"is not a readable package \(big is over 1,000 bytes\)"):
        read_members(archive, ["big"])


# --- fetching ---


@pytest.fixture
def source_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A package whose setup.py leaves a trace; pip finds it, and nothing else."""
    (tmp_path / "index").mkdir()
    trace = f"open({str(tmp_path / 'ran')!r}, 'w')"
    archive = sdist(tmp_path / "index" / "package-1.0.tar.gz", {"setup.py": trace.encode(), "data.json": b"[]"})
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "index"), "EXTRA_INDEX_URL": ""}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return Package("package", "1.0", sha256_of(archive), backend="setuptools.build_meta")


@pytest.mark.parametrize("relative", [False, True])
def test_a_source_archive_is_fetched_without_running_any_of_it(
    relative: bool, source_package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = find_or_fetch(source_package, Path("cache") if relative else tmp_path / "cache")
    assert read_members(archive, ["data.json"]) == {"data.json": b"[]"}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["package-1.0.tar.gz"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("fault", ["other bytes", "not there"])
def test_a_download_that_fails_is_one_line(fault: str, source_package: Package, tmp_path: Path) -> None:
    changed = {"sha256": "0" * 64} if fault == "other bytes" else {"version": "2.0"}
    with pytest.raises(
        ValueError, match=r"pip download of package [12]\.0 failed \(.*\): check the network, or put"
    ) as caught:
        find_or_fetch(replace(source_package, **changed), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_shingles_are_of_letters_alone() -> None:
    assert shingles("一二三，四五六七八九。") == {"一二三四五六七八", "二三四五六七八九"}
    assert shingles("一二") == {"一二"}


def test_an_archive_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel(tmp_path / "my.whl", [*map(parable, range(PACKAGE_ROWS))])
    read = task_corpus.read_members

    def read_then_replaced(*given: Any) -> dict[str, bytes]:
        found = read(*given)
        wheel(archive, [*map(parable, range(PACKAGE_ROWS + 1))])
        return found

    monkeypatch.setattr(task_corpus, "read_members", read_then_replaced)
    with pytest.raises(ValueError, match=r"my\.whl changed while it was read"):
        prepare_corpus(CORPORA["summarization"], tmp_path / "out", archive, ignore)
    assert not (tmp_path / "out").exists()
