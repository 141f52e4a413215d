"""The model that comes with moyun (models/poems) is whole, and as good as README says of it."""

from __future__ import annotations

import datasets
from conftest import ROOT

from modules.checkpoint import load_verified, verify_model
from modules.evaluation import ngram_floor, score
from modules.places import EMBEDDED, model_folder
from modules.poetry import split_of
from modules.row_files import read_rows

FOLDER = model_folder(ROOT / EMBEDDED)


def test_it_is_sound() -> None:
    assert verify_model(FOLDER) < 1e-4


def test_it_reads_unseen_poems_far_better_than_counting_does() -> None:
    poems: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for row in read_rows(ROOT / "data" / "poems.jsonl.gz"):
        poems[split_of(row["src_txt"])].append(row["src_txt"])
    assert len(poems["test"]) == 300
    train, test = (datasets.Dataset.from_dict({"src_txt": poems[split]}) for split in ("train", "test"))
    decoder, tokenizer = load_verified(FOLDER)
    found = score(decoder, tokenizer, test).perplexity_per_char.value
    floor = ngram_floor(train, test, tokenizer)
    assert found < 120  # 84.5 when it was made
    assert found < min(of.value for of in floor.values())
