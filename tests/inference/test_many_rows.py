"""Any number of rows in windows and batches: what is held of them, and what `map` gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from modules.config.loader import ConfigError
from modules.inference.prediction import answering
from modules.tokenizer.tokenizer import Tokenizer
from pipelines import pipeline
from tests.helpers.predictions import TEXTS, jsonl, read, run, small_model


@pytest.fixture
def model(store: Path, tokenizer: Tokenizer) -> Path:
    return small_model(store / "model", tokenizer)


# --- memory, and Python ---


def test_no_more_than_a_window_of_rows_is_held(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = 0

    def endless() -> Iterator[dict[str, str]]:
        nonlocal pulled
        for number in range(100_000):
            pulled += 1
            yield {"src_txt": TEXTS[number % len(TEXTS)]}

    monkeypatch.setattr(answering, "WINDOW_ROWS", 8)
    found = pipeline(model="model").map(endless(), max_new_tokens=1, seed=1)
    for given in range(1, 50):
        next(found)
        assert given <= pulled <= given + 8


def test_a_window_of_long_rows_holds_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "WINDOW_CHARACTERS", 10)
    assert [len(window) for window in answering.windows([{"a": "12345"}] * 5)] == [2, 2, 1]


def test_a_pipeline_maps_any_rows_as_predict_does(model: Path, store: Path, small_windows: None) -> None:
    jsonl(store / "rows.jsonl", [{"src_txt": text, "n": 1} for text in [*TEXTS, ""]])
    run("source=rows.jsonl", "target=out.jsonl", "return_full_text=false")
    wanted = [{key: row[key] for key in ("text", "stopped")} for row in read(store / "out.jsonl")]
    pipe = pipeline(model="model", max_new_tokens=6, top_p=0.9, seed=42)
    given = datasets.Dataset.from_json(str(store / "rows.jsonl"), cache_dir=str(store / "cache"))
    for rows in (given, ({"text": text} for text in [*TEXTS, ""]), iter([*TEXTS, ""])):
        found = list(pipe.map(rows, return_full_text=False))
        assert [{key: row[key] for key in ("text", "stopped")} for row in found] == wanted
        assert [row["error"] for row in found] == [*[None] * len(TEXTS), "the text is empty"]
    with pytest.raises(ConfigError, match="temperature"):
        pipe.map(TEXTS, temperature=-1)  # at once, not when the first row is asked for


def test_batches_fill_the_budget_with_rows_of_like_length() -> None:
    found = list(answering.batches([1, 9, 2, 8, 30], 2, 22))
    assert found == [[4], [1, 3], [2, 0]]
    assert list(answering.batches([], 2, 22)) == []
