from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.config.data import DataConfig
from modules.data.corpora.folders import prepare_rows, prepare_sample, rows_of
from modules.data.corpora.verse import SPLITS, split_of
from modules.data.groups import hash_share
from modules.data.groups import split_by_hash as split_dataset
from modules.data.quarantine import DataError
from modules.data.splits import load_splits
from modules.system.checksums import sha256_of
from modules.system.jsonl import Row, read_jsonl
from tests.helpers.models import ROOT

SAMPLE = ROOT / "data" / "poems-300.jsonl.gz"


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def texts(count: int, start: int = 0) -> list[Row]:
    return [{"src_txt": f"第{number}行，007。"} for number in range(start, start + count)]


def split_by_hash(rows: list[Row], validation: float, test: float) -> dict[str, list[Row]]:
    found = split_dataset(datasets.Dataset.from_list(rows), validation, test)
    return {name: list(rows_of(split)) for name, split in found.items()}


def read_split(folder: Path, split: str) -> list[Row]:
    return read_jsonl(folder / f"{split}.jsonl.gz")


def files_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    prepare_sample(folder, SAMPLE)
    return folder


@pytest.fixture
def copy(sample: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sample, tmp_path / "copy")


# --- the bundled sample ---


def test_the_sample_becomes_three_sets_of_three_splits_each(sample: Path) -> None:
    manifest = json.loads((sample / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["source"], manifest["sha256"]) == ("poems-300.jsonl.gz", sha256_of(SAMPLE))
    assert manifest["files"].keys() == {
        f"{name}/{split}.jsonl.gz" for name in ("poems", "quatrains", "couplets") for split in SPLITS
    }
    assert files_of(sample).keys() == manifest["files"].keys() | {"manifest.json"}
    for path, entry in manifest["files"].items():
        rows = read_jsonl(sample / path)
        assert (entry["rows"], entry["sha256"]) == (len(rows), sha256_of(sample / path))
        assert all(row.get("src_txt") for row in rows)


def test_the_samples_splits_are_those_of_the_corpus(sample: Path) -> None:
    rows = read_jsonl(SAMPLE)
    for split in SPLITS:
        assert read_split(sample / "poems", split) == [row for row in rows if split_of(row["src_txt"]) == split]
    assert [len(read_split(sample / "poems", split)) for split in SPLITS] == [240, 30, 30]


def test_no_quatrain_is_of_another_splits_poem(sample: Path) -> None:
    poems = {split: "\n".join(row["src_txt"] for row in read_split(sample / "poems", split)) for split in SPLITS}
    for split in SPLITS:
        quatrains = read_split(sample / "quatrains", split)
        assert quatrains
        assert all(row["src_txt"] in poems[split] for row in quatrains)


def test_a_second_call_changes_nothing(copy: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    manifest = prepare_sample(copy, SAMPLE)
    assert manifest == json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == times


def test_the_same_source_gives_the_same_bytes(sample: Path, tmp_path: Path) -> None:
    prepare_sample(tmp_path, SAMPLE)
    assert files_of(tmp_path) == files_of(sample)


def test_training_reads_what_was_prepared(sample: Path) -> None:
    splits = load_splits(DataConfig(path=str(sample / "quatrains")), seed=0)
    assert {name: rows["src_txt"][:] for name, rows in splits.items()} == {
        split: [row["src_txt"] for row in read_split(sample / "quatrains", split)] for split in SPLITS
    }


@pytest.mark.parametrize("change", ["edited", "deleted", "no manifest", "broken manifest", "manifest without files"])
def test_a_folder_that_was_changed_is_refused_and_left_alone(copy: Path, change: str) -> None:
    if change == "edited":
        (copy / "poems" / "test.jsonl.gz").write_bytes(gzip.compress(b'{"src_txt": "x"}\n'))
    elif change == "deleted":
        (copy / "poems" / "test.jsonl.gz").unlink()
    elif change == "no manifest":  # an interrupted call left it
        (copy / "manifest.json").unlink()
    elif change == "broken manifest":
        (copy / "manifest.json").write_text('{"source": ')
    else:
        manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
        (copy / "manifest.json").write_text(json.dumps({**manifest, "files": {}}), encoding="utf-8")
    before = files_of(copy)
    with pytest.raises(DataError, match=r"nothing is overwritten: give output_dir=ANOTHER_FOLDER, or delete this one"):
        prepare_sample(copy, SAMPLE)
    assert files_of(copy) == before


def test_another_source_in_the_same_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    before = files_of(copy)
    other = write_csv(tmp_path / "mine.csv", texts(20))
    with pytest.raises(DataError, match=r"copy holds other data than .*mine\.csv gives now"):
        prepare_rows(copy, str(other), {}, 0.1, 0.1)
    renamed = shutil.copy(SAMPLE, tmp_path / "other.jsonl.gz")
    with pytest.raises(DataError, match=r"copy holds other data than other\.jsonl\.gz gives now"):
        prepare_sample(copy, Path(renamed))
    assert files_of(copy) == before


# --- rows of one's own ---


def test_rows_of_ones_own_are_split_and_lose_nothing(tmp_path: Path) -> None:
    rows = [{"id": str(n), "问": f"问{n}\n，", "答": f" {n:03} "} for n in range(300)]
    source = write_csv(tmp_path / "mine.csv", rows)
    manifest = prepare_rows(tmp_path / "out", str(source), {"问": "src_txt", "答": "tgt_txt"}, 0.1, 0.2)
    found = {split: read_split(tmp_path / "out", split) for split in SPLITS}
    expected = [{"src_txt": row["问"], "tgt_txt": row["答"]} for row in rows]
    assert sorted((row for part in found.values() for row in part), key=expected.index) == expected
    for part in found.values():  # each in the order of the file
        assert part == sorted(part, key=expected.index)
    counts = {name.partition(".")[0]: entry["rows"] for name, entry in manifest["files"].items()}
    assert counts == {split: len(part) for split, part in found.items()}
    assert counts["test"] == pytest.approx(60, abs=20)
    assert counts["validation"] == pytest.approx(30, abs=15)
    assert manifest["exact copies dropped"] == 0


def test_rows_of_ones_own_twice_are_made_once(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "mine.csv", texts(40))
    arguments = (str(source), {}, 0.1, 0.1)
    first = prepare_rows(tmp_path / "out", *arguments)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare_rows(tmp_path / "out", *arguments) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    with pytest.raises(DataError, match="holds other data"):
        prepare_rows(tmp_path / "out", str(source), {}, 0.2, 0.1)
    write_csv(source, texts(41))
    with pytest.raises(DataError, match="holds other data"):
        prepare_rows(tmp_path / "out", *arguments)


def test_own_splits_are_kept_and_copies_go_where_they_would_leak(tmp_path: Path) -> None:
    names = {"train": ["a", "b", "b", "c", "d"], "dev": ["c", "e", "e"], "test": ["d", "e", "f"]}
    for name, values in names.items():
        write_csv(tmp_path / "mine" / f"{name}.csv", [{"text": value} for value in values])
    manifest = prepare_rows(tmp_path / "out", str(tmp_path / "mine"), {"text": "src_txt"}, 0.5, 0.4)
    found = {split: [row["src_txt"] for row in read_split(tmp_path / "out", split)] for split in SPLITS}
    assert found == {"train": ["a", "b"], "validation": ["c"], "test": ["d", "e", "f"]}
    assert manifest["exact copies dropped"] == 5


@pytest.mark.parametrize("present", ["validation", "test"])
def test_one_split_of_ones_own_is_enough_to_keep_it(tmp_path: Path, present: str) -> None:
    write_csv(tmp_path / "mine" / "train.csv", texts(30))
    write_csv(tmp_path / "mine" / f"{present}.csv", texts(3, start=90))
    prepare_rows(tmp_path / "out", str(tmp_path / "mine"), {}, 0.1, 0.1)
    assert read_split(tmp_path / "out", present) == texts(3, start=90)
    assert read_split(tmp_path / "out", "train") == texts(30)
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_test_rows_without_training_rows_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "mine" / "test.csv", texts(3))
    with pytest.raises(DataError, match=r"has no file for split 'train'; it holds test\.csv"):
        prepare_rows(tmp_path / "out", str(tmp_path / "mine"), {}, 0.1, 0.1)


def test_a_split_of_nothing_but_copies_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "mine" / "train.csv", texts(2))
    write_csv(tmp_path / "mine" / "test.csv", texts(3))
    with pytest.raises(DataError, match="every train row is a copy of a row in another split"):
        prepare_rows(tmp_path / "out", str(tmp_path / "mine"), {}, 0.1, 0.1)
    assert not (tmp_path / "out").exists()


def test_rows_that_differ_only_in_their_target_are_no_copies(tmp_path: Path) -> None:
    rows = [{"src_txt": f"{n // 2}", "tgt_txt": f"{n % 2}"} for n in range(40)]
    source = write_csv(tmp_path / "mine.csv", [*rows, *rows[:5]])
    manifest = prepare_rows(tmp_path / "out", str(source), {}, 0.2, 0.2)
    assert manifest["exact copies dropped"] == 5
    parts = [{row["src_txt"] for row in read_split(tmp_path / "out", split)} for split in SPLITS]
    assert sum(map(len, parts)) == 20  # and both answers to a source are in one split: none is tested on a known one


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [((0.0, 0.0), {"train"}), ((0.2, 0.0), {"train", "validation"}), ((0.0, 0.2), {"train", "test"})],
)
def test_a_split_of_nothing_is_not_written(tmp_path: Path, fractions: tuple[float, float], expected: set[str]) -> None:
    source = write_csv(tmp_path / "mine.csv", texts(30))
    prepare_rows(tmp_path / "out", str(source), {}, *fractions)
    assert set(files_of(tmp_path / "out")) == {f"{name}.jsonl.gz" for name in expected} | {"manifest.json"}
    load_splits(DataConfig(path=str(tmp_path / "out"), validation_fraction=0.1), seed=0)


def test_few_rows_still_give_every_split(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "mine.csv", texts(3))
    prepare_rows(tmp_path / "out", str(source), {}, 0.02, 0.02)
    assert [len(read_split(tmp_path / "out", split)) for split in SPLITS] == [1, 1, 1]


@pytest.mark.parametrize("make", [lambda: texts(2), lambda: texts(2) * 10], ids=["two rows", "copies of two"])
def test_too_few_rows_are_refused(tmp_path: Path, make: Callable[[], list[Row]]) -> None:
    source = write_csv(tmp_path / "mine.csv", make())
    with pytest.raises(
        DataError, match=r"2 different texts are too few to split .*: give more, or set validation_frac"
    ):
        prepare_rows(tmp_path / "out", str(source), {}, 0.02, 0.02)
    assert not (tmp_path / "out").exists()


def test_a_bad_row_stops_everything(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "mine.csv", [*texts(20), {"src_txt": ""}])
    with pytest.raises(DataError, match=r"mine\.csv"):
        prepare_rows(tmp_path / "out", str(source), {}, 0.1, 0.1)
    assert not (tmp_path / "out").exists()


# --- the split by hash ---


def test_the_hash_is_pinned() -> None:
    """Another one would move rows between splits under people's models."""
    assert hash_share("白日依山尽，") == pytest.approx(0.182177829242534, abs=1e-9)


@given(st.lists(st.text(min_size=1, max_size=3), unique=True, min_size=3, max_size=60), st.integers(3, 60))
@settings(max_examples=60, deadline=None)
def test_no_row_moves_when_rows_are_added(values: list[str], before: int) -> None:
    """But for so few rows that they are split by rank, which leaves no split empty."""
    rows = [{"src_txt": value} for value in values]
    early, late = split_by_hash(rows[:before], 0.2, 0.2), split_by_hash(rows, 0.2, 0.2)
    assert all(early.values())
    assert sorted(str(row) for part in late.values() for row in part) == sorted(map(str, rows))
    if by_bounds(early) and by_bounds(late):
        assert all(early[name] == [row for row in late[name] if row in rows[:before]] for name in SPLITS)


def by_bounds(splits: dict[str, list[Row]]) -> bool:
    bounds = {"test": (0.0, 0.2), "validation": (0.2, 0.4), "train": (0.4, 1.0)}
    return all(low <= hash_share(row["src_txt"]) < high for name, (low, high) in bounds.items() for row in splits[name])


def test_a_thousand_rows_keep_their_places_when_a_thousand_are_added() -> None:
    first, both = (split_by_hash(texts(count), 0.05, 0.05) for count in (1000, 2000))
    for name in SPLITS:
        assert first[name] == [row for row in both[name] if row in texts(1000)]
    assert len(both["test"]) == pytest.approx(100, abs=30)
    shuffled = split_by_hash(texts(1000)[::-1], 0.05, 0.05)
    assert {name: rows[::-1] for name, rows in shuffled.items()} == first


def test_the_folder_may_be_there_if_it_is_empty(tmp_path: Path) -> None:
    prepare_rows(tmp_path, str(write_csv(tmp_path.with_suffix(".csv"), texts(40))), {}, 0.1, 0.1)
    assert read_split(tmp_path, "train")


def test_an_interrupted_call_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modules.data.corpora.folders.write_derived_sets", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_sample(tmp_path / "out", SAMPLE)
    assert (tmp_path / "out" / "poems" / "train.jsonl.gz").exists()
    assert prepare_sample(tmp_path / "out", SAMPLE) == prepare_sample(tmp_path / "whole", SAMPLE)
