"""Which file, split or share of the rows each of training, validation and test rows is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from modules.config.data import DataConfig
from modules.config.loader import load_config
from modules.data.arrow import count_copies
from modules.data.quarantine import DataError
from modules.data.splits import choose_places, evaluation_place, load_splits, load_test_rows, load_training_rows

TRAIN, VALIDATION, TEST = ["春一", "春二", "春三"], ["夏一", "夏二"], ["秋一"]


def write_folder(folder: Path, **files: list[str]) -> Path:
    folder.mkdir()
    for name, texts in files.items():
        (folder / f"{name}.csv").write_text("\n".join(["src_txt", *texts]), encoding="utf-8")
    return folder


def as_files(folder: Path) -> str:
    return str(write_folder(folder / "files", train=TRAIN, dev=VALIDATION, test=TEST))


def as_evaluation_files(folder: Path) -> str:
    return str(write_folder(folder / "other", training=TRAIN, val=VALIDATION, eval=TEST))


def as_saved_splits(folder: Path) -> str:
    splits = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    rows = {name: datasets.Dataset.from_dict({"src_txt": texts}) for name, texts in splits.items()}
    datasets.DatasetDict(rows).save_to_disk(folder / "saved")
    return str(folder / "saved")


def as_hub_dataset(folder: Path) -> str:
    splits = {"train": TRAIN, "valid": VALIDATION, "test": TEST}
    rows = {name: datasets.Dataset.from_dict({"src_txt": texts}) for name, texts in splits.items()}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(rows))
        patched.setattr("modules.data.sources.HfApi.dataset_info", lambda *_, **__: None)
        name = f"poet/{folder.name}"
        load_splits(DataConfig(path=name), 0)  # asked once a process
    return name


FORMS = [as_files, as_evaluation_files, as_saved_splits, as_hub_dataset]


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_given_for_a_split_is_its_file_of_that_split(form: Any, tmp_path: Path) -> None:
    place = form(tmp_path)
    own = tmp_path / "own.csv"
    own.write_text("src_txt\n冬一\n冬二\n", encoding="utf-8")
    config = DataConfig(path=str(own), validation_path=place, test_path=place)
    splits = load_splits(config, seed=0)
    assert {name: rows["src_txt"][:] for name, rows in splits.items()} == {
        "train": ["冬一", "冬二"],
        "validation": VALIDATION,
        "test": TEST,
    }
    assert load_test_rows(config)["src_txt"][:] == TEST
    assert load_test_rows(DataConfig(path=place))["src_txt"][:] == TEST
    assert load_training_rows(DataConfig(path=place), seed=0)["src_txt"][:] == TRAIN


def test_a_folder_without_the_split_is_refused_naming_what_it_holds(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "rows", train=TRAIN, dev=VALIDATION)
    with pytest.raises(DataError, match=r"rows has no file for split 'test'; it holds dev\.csv, train\.csv"):
        load_test_rows(DataConfig(test_path=str(folder)))
    (folder / "dev.csv").unlink()
    with pytest.raises(DataError, match=r"rows has no file for split 'validation'; it holds train\.csv"):
        load_splits(DataConfig(path=str(folder / "train.csv"), validation_path=str(folder)), 0)


def test_a_file_or_saved_dataset_given_for_a_split_is_all_of_it(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"src_txt": TEST}).save_to_disk(tmp_path / "saved")
    folder = write_folder(tmp_path / "rows", train=TRAIN)
    for place, expected in ((tmp_path / "saved", TEST), (folder / "train.csv", TRAIN)):
        assert load_test_rows(DataConfig(test_path=str(place)))["src_txt"][:] == expected


def test_without_test_rows_the_validation_rows_are_scored(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "rows", train=TRAIN, valid=VALIDATION)
    config = DataConfig(path=str(folder))
    assert load_test_rows(config)["src_txt"][:] == VALIDATION
    assert str(evaluation_place(config)) == f"{folder}/valid.csv (it has no test rows)"
    with pytest.raises(DataError, match=r"train\.csv: no test rows here; give data\.test_path"):
        load_test_rows(DataConfig(path=str(folder / "train.csv")))


def test_each_split_says_where_it_comes_from(tmp_path: Path) -> None:
    folder = Path(as_files(tmp_path))
    place = choose_places(DataConfig(path=str(folder), test_path=str(folder / "train.csv")))
    assert {name: str(one) for name, one in place.items()} == {
        "train": f"{folder}/train.csv",
        "validation": f"{folder}/dev.csv",
        "test": f"{folder}/train.csv",
    }
    mine = choose_places(DataConfig(path="prepared/sample/quatrains"), {"src_txt": TRAIN})
    share = "rows in memory (2% of its rows: data.validation_fraction)"
    assert {name: str(one) for name, one in mine.items()} == {"train": "rows in memory", "validation": share}
    hub = as_hub_dataset(tmp_path)
    assert str(evaluation_place(DataConfig(path=hub))) == f"{hub}, split test"


@pytest.mark.parametrize(
    "name", ["sample", "full", "modern", "classical", "classical_modern", "articles", "statutes", "question_generation"]
)
def test_rows_that_prepare_has_still_to_make_are_named_with_a_command_that_it_takes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="isn't there yet: `python -m pipelines.prepare") as found:
        choose_places(DataConfig(path=f"prepared/{name}"))
    command = str(found.value).split("`")[1]
    assert load_config("prepare", command.split()[3:]).folder == Path("prepared") / name


@pytest.mark.parametrize("pairs", ["train", "validation", "test"])
def test_splits_of_different_kind_are_refused(pairs: str, tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        text = "src_txt,tgt_txt\n春,秋\n夏,冬\n" if name == pairs else "src_txt\n春\n夏\n"
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.csv: .*, but .*\.csv: .*; give all splits the same columns"):
        load_splits(DataConfig(path=str(tmp_path)), 0)


def test_rows_that_stand_in_two_splits_are_counted_word_for_word() -> None:
    rows = datasets.Dataset.from_dict({"src_txt": ["a", "b:1", "c"], "tgt_txt": ["1:x", "x", "y"]})
    others = datasets.Dataset.from_dict({"src_txt": ["c", "a", "b", "c"], "tgt_txt": ["y", "1:x", "1:x", "y"]})
    assert count_copies(rows, others) == 2
    assert count_copies(others, rows) == 3
    assert count_copies(rows, others.select([2])) == 0
    assert count_copies(rows.select([2, 0]), others.shuffle(seed=3)) == 2
    assert count_copies(rows.remove_columns("tgt_txt"), others) == 2  # of the columns that both have
    many = datasets.Dataset.from_dict({"src_txt": [f"{number % 9000}" for number in range(10_000)]})
    assert count_copies(many.select(range(5)), many.select(range(5, 10_000))) == 5
    assert count_copies(many.select(range(1000, 2000)), many.select(range(2000, 9000))) == 0
