"""The model that comes with moyun (models/poems) is whole, and as good as README says of it."""

from __future__ import annotations

import datasets

from modules.checkpoint.loading import load_verified, verify_model
from modules.config.base import POEMS, model_folder
from modules.data.corpora.verse import split_of
from modules.evaluation.baselines import ngram_floor
from modules.evaluation.likelihood import score
from modules.system.jsonl import read_jsonl
from tests.helpers.models import ROOT

FOLDER = model_folder(ROOT / POEMS)


def test_it_is_sound() -> None:
    assert verify_model(FOLDER) < 1e-4


def test_it_reads_unseen_poems_far_better_than_counting_does() -> None:
    poems: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for row in read_jsonl(ROOT / "data" / "poems.jsonl.gz"):
        poems[split_of(row["src_txt"])].append(row["src_txt"])
    assert len(poems["test"]) == 300
    train, test = (datasets.Dataset.from_dict({"src_txt": poems[split]}) for split in ("train", "test"))
    decoder, tokenizer = load_verified(FOLDER)
    found = score(decoder, tokenizer, test).perplexity_per_char.value
    floor = ngram_floor(train, test, tokenizer)
    assert found < 120  # 84.5 when it was made
    assert found < min(of.value for of in floor.values())
