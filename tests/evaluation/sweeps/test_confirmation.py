"""Whether the best trial is better: by the paired test, over seeds, where a row counts once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modules.config.data import DataConfig
from modules.evaluation.likelihood import score
from modules.evaluation.statistics import compare
from modules.evaluation.sweeps.confirmation import read_scores, save_scores
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import save_model


def saved(folder: Path, name: str, nll: np.ndarray, labels: list[str]) -> Path:
    path = folder / f"{name}.npz"
    np.savez(
        path,
        statistics=np.stack([nll, np.full(len(nll), 20.0)], 1),
        labels=np.array(labels),
        unread=np.zeros(len(nll), bool),
    )
    return path


def test_a_row_that_each_seed_validates_on_is_one_unit(tmp_path: Path) -> None:
    """Three seeds tell of the training's luck, and not of three times as many rows: p isn't smaller for them."""
    rng = np.random.default_rng(0)
    best = rng.normal(60, 8, 40)
    other = best + rng.normal(0.8, 2.0, 40)
    labels = [f"row-{row}" for row in range(40)]
    one = [read_scores([saved(tmp_path, name, nll, labels)]) for name, nll in (("a", best), ("b", other))]
    three = [
        read_scores([saved(tmp_path, f"{name}{seed}", nll, labels) for seed in range(3)])
        for name, nll in (("a", best), ("b", other))
    ]
    assert [len(metric.units) for metric in (*one, *three)] == [40] * 4
    assert compare(*three).p_value == compare(*one).p_value
    assert compare(*three).verdict == "better"


def test_seeds_that_hold_out_other_rows_add_up(tmp_path: Path) -> None:
    nll = np.full(30, 50.0)
    paths = [saved(tmp_path, f"s{seed}", nll, [f"{seed}-{row}" for row in range(30)]) for seed in range(2)]
    assert len(read_scores(paths).units) == 60


def test_the_rows_are_the_validation_rows_and_groups_stay_together(
    tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer, poems: dict[str, list[str]]
) -> None:
    import json

    import datasets

    texts = poems["validation"][:12]
    for split, found in (("train", poems["train"][:20]), ("validation", texts)):
        lines = [{"src_txt": text, "group": f"poem {row // 3}"} for row, text in enumerate(found)]
        (tmp_path / f"{split}.jsonl").write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
    model = save_model(tmp_path / "model", decoder, tokenizer, {})
    save_scores(tmp_path / "scores" / "000.npz", model, DataConfig(path=str(tmp_path)), seed=1)
    found = read_scores([tmp_path / "scores" / "000.npz"])
    expected = score(decoder, tokenizer, datasets.Dataset.from_dict({"src_txt": texts})).perplexity_per_char
    assert found.value == pytest.approx(expected.value, rel=1e-4)
    assert (len(found.statistics), len(found.units)) == (12, 4)
