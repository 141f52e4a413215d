"""No group of rows is divided between splits: by prepare, and where training holds rows out."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.config.data import DataConfig
from modules.data.corpora.verse import SPLITS
from modules.data.groups import count_of_other_groups, fill, group_numbers, joined, placed, places_by_hash
from modules.data.quarantine import DataError
from modules.data.splits import choose_places, groups_are_named, load_splits, load_training_rows, related_rows
from modules.training.planning.split_facts import SplitFacts


def text(number: int) -> str:
    letters = random.Random(number)
    return "".join(chr(letters.randrange(0x4E00, 0x9FA5)) for _ in range(20))


def rows_of_groups(*sizes: int) -> datasets.Dataset:
    labels = [f"篇{group}" for group, size in enumerate(sizes) for _ in range(size)]
    return datasets.Dataset.from_dict({"src_txt": [text(n) for n in range(len(labels))], "group": labels})


def groups_in(rows: datasets.Dataset, places: np.ndarray) -> dict[str, set[str]]:
    return {name: {rows["group"][int(row)] for row in np.flatnonzero(places == name)} for name in SPLITS}


@given(st.lists(st.integers(1, 12), min_size=10, max_size=60), st.sampled_from([0.02, 0.1, 0.3]))
def test_a_group_is_in_one_split_and_splits_are_as_large_as_asked_for(sizes: list[int], share: float) -> None:
    rows = rows_of_groups(*sizes)
    places = places_by_hash(rows, share, share)
    labels = list(groups_in(rows, places).values())
    assert all(labels)
    assert sum(map(len, labels)) == len(sizes)
    counts = Counter(places.tolist())
    for name in ("test", "validation"):
        assert abs(counts[name] - len(rows) * share) <= max(sizes) / 2 + 1 or counts[name] <= max(sizes)


def test_places_do_not_hang_on_the_order_of_rows() -> None:
    rows = rows_of_groups(*range(1, 30))
    order = np.random.default_rng(0).permutation(len(rows))
    assert places_by_hash(rows.select(order), 0.1, 0.1).tolist() == places_by_hash(rows, 0.1, 0.1)[order].tolist()


def test_large_groups_are_held_out_no_more_often_than_small_ones() -> None:
    """Whose number were the lowest of their texts', the large would always come first."""
    found = np.random.default_rng(0).random(11_000)
    units = np.concatenate([np.arange(1000), 1000 + np.arange(1000).repeat(10)])
    wanted, shares = {"test": 1100, "validation": 1100}, {"test": 0.1, "validation": 0.1}
    places = placed(units, found, wanted, shares, grouped=False)
    assert (places[:1000] == "test").mean() == pytest.approx(0.1, abs=0.04)
    assert (places[1000:] == "test").mean() == pytest.approx(0.1, abs=0.04)


def test_a_giant_group_is_trained_on_and_the_others_are_held_out() -> None:
    rows = rows_of_groups(900, *[5] * 20)
    labels = groups_in(rows, places_by_hash(rows, 0.05, 0.05))
    assert labels["train"] == {"篇0"}
    assert [len(labels["test"]), len(labels["validation"])] == [10, 10]


@pytest.mark.parametrize(("sizes", "words"), [([50], "1 group of rows"), ([20, 30], "2 groups of rows")])
def test_too_few_groups_are_refused(sizes: list[int], words: str) -> None:
    with pytest.raises(
        DataError, match=rf"{words} \(column group; rename it .* can't be split .* or set validation_fraction=0"
    ):
        places_by_hash(rows_of_groups(*sizes), 0.1, 0.1)


@pytest.mark.parametrize("empty", ["", "null", " "])
def test_rows_without_a_group_stand_alone(empty: str) -> None:
    rows = datasets.Dataset.from_dict({"src_txt": list(map(text, range(200))), "group": [empty] * 200})
    assert group_numbers(rows) is None
    plain = rows.remove_columns("group")
    assert places_by_hash(rows, 0.1, 0.1).tolist() == places_by_hash(plain, 0.1, 0.1).tolist()
    assert count_of_other_groups(rows.select(range(50)), rows.select(range(50, 200))) == 0


def test_what_shares_a_text_or_a_group_is_joined() -> None:
    texts, groups = np.array([0, 1, 1, 2, 3, 4]), np.array([0, 0, 2, 2, 4, 5])
    assert joined(texts, groups).tolist() == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("sizes", "wanted", "leave", "expected"),
    [
        ([3, 3, 3, 3], 6, 1, [0, 1]),
        ([9, 3, 3], 5, 1, [1, 2]),  # the first is too large; 6 is nearer to 5 than 3
        ([9, 8, 9], 2, 1, [1]),  # the smallest, though it is too large
        ([1, 1, 98], 50, 2, [0]),  # two are to be left
        ([10, 4], 3, 1, [1]),
    ],
)
def test_whole_groups_fill_a_share(sizes: list[int], wanted: int, leave: int, expected: list[int]) -> None:
    assert fill(sizes, wanted, leave) == expected


# --- where training holds rows out ---


def held_out(rows: datasets.Dataset, **config: Any) -> dict[str, datasets.Dataset]:
    return load_splits(DataConfig(validation_fraction=0.1, **config), 0, rows, extras={"group"})


def test_training_holds_out_whole_groups() -> None:
    rows = rows_of_groups(*[7] * 30)
    splits = held_out(rows)
    labels = {name: set(split["group"]) for name, split in splits.items()}
    assert not labels["train"] & labels["validation"]
    assert len(splits["validation"]) == 21
    places = choose_places(DataConfig(), rows)
    assert related_rows(splits, places) == {"validation": 0}
    named = rows.rename_column("group", "passage")
    again = load_splits(DataConfig(validation_fraction=0.1, columns={"passage": "group"}), 0, named)
    assert again["validation"].column_names == ["src_txt"]  # texts alone are learnt from
    assert again["validation"]["src_txt"][:] == splits["validation"]["src_txt"][:]


def test_the_rows_that_were_trained_on_are_found_again(tmp_path: Path) -> None:
    rows_of_groups(*[7] * 30).to_json(tmp_path / "a.jsonl", force_ascii=False)
    config = DataConfig(path=str(tmp_path / "a.jsonl"), validation_fraction=0.1, cache_dir=str(tmp_path / "cache"))
    assert load_training_rows(config, 0)["src_txt"][:] == load_splits(config, 0)["train"]["src_txt"][:]


def test_without_groups_the_same_rows_are_held_out_as_ever() -> None:
    rows = rows_of_groups(*[1] * 50).remove_columns("group")
    expected = np.sort(np.random.default_rng(0).permutation(50)[:5]).tolist()
    assert held_out(rows)["validation"]["src_txt"][:] == rows.select(expected)["src_txt"][:]


def test_a_column_of_two_labels_is_no_group_to_training_but_counted() -> None:
    rows = rows_of_groups(50, 50)
    splits = held_out(rows)
    assert len(splits["validation"]) == 10
    place = choose_places(DataConfig(), rows)["validation"]
    assert related_rows(splits, choose_places(DataConfig(), rows)) == {"validation": 10}
    facts = SplitFacts(10, "pairs", place, 0, None, 10)
    assert str(facts).endswith("of a group that training rows are of: 10 (too few groups to leave them whole)")
    assert facts.metrics("validation")["rows/validation_related_to_training"] == 10


def test_groups_that_are_numbered_anew_in_each_split_are_not_compared(tmp_path: Path) -> None:
    place = tmp_path / "sample" / "quatrains"
    place.mkdir(parents=True)
    assert groups_are_named(str(place))
    (tmp_path / "sample" / "manifest.json").write_text('{"recipe": "v2", "files": {}}', encoding="utf-8")
    assert not groups_are_named(str(place))
    assert not groups_are_named(str(place / "train.jsonl.gz"))
    (tmp_path / "sample" / "manifest.json").write_text('{"fractions": {}, "files": {}}', encoding="utf-8")
    assert groups_are_named(place)
