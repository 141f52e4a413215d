"""Whether the best trial is better: by the sweep's metric and a paired test, over seeds, where a row counts once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest

from modules.config.data import DataConfig
from modules.config.evaluation import TaskConfig
from modules.config.generation import GenerationConfig
from modules.config.loader import load_config
from modules.config.training import TrainConfig, TrainingConfig
from modules.data.splits import choose_places, load_splits
from modules.evaluation.choosing.checkpoint_choice import scores, selection_task
from modules.evaluation.likelihood import score
from modules.evaluation.metrics import METRICS, bleu, verse
from modules.evaluation.statistics import Metric, compare
from modules.evaluation.sweeps.confirmation import KINDS, confirmation_of, read_scores, save_scores
from modules.evaluation.sweeps.sweep_result import winner_of
from modules.evaluation.sweeps.trial_outcome import Outcome
from modules.evaluation.task_rows import TaskRow
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
        kind=np.array("exp_ratio"),
    )
    return path


def read(paths: list[Path]) -> Metric:
    return read_scores(paths, "val/perplexity_per_char", higher_is_better=False)[0]


def test_a_row_that_each_seed_validates_on_is_one_unit(tmp_path: Path) -> None:
    """Three seeds tell of the training's luck, and not of three times as many rows: p isn't smaller for them."""
    rng = np.random.default_rng(0)
    best = rng.normal(60, 8, 40)
    other = best + rng.normal(0.8, 2.0, 40)
    labels = [f"row-{row}" for row in range(40)]
    one = [read([saved(tmp_path, name, nll, labels)]) for name, nll in (("a", best), ("b", other))]
    three = [
        read([saved(tmp_path, f"{name}{seed}", nll, labels) for seed in range(3)])
        for name, nll in (("a", best), ("b", other))
    ]
    assert [len(metric.units) for metric in (*one, *three)] == [40] * 4
    assert compare(*three).p_value == compare(*one).p_value
    assert compare(*three).verdict == "better"


def test_seeds_that_hold_out_other_rows_add_up(tmp_path: Path) -> None:
    nll = np.full(30, 50.0)
    paths = [saved(tmp_path, f"s{seed}", nll, [f"{seed}-{row}" for row in range(30)]) for seed in range(2)]
    assert len(read(paths).units) == 60


def write_rows(folder: Path, rows: dict[str, list[dict[str, str]]]) -> str:
    folder.mkdir()
    for split, lines in rows.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("name", ["loss", "perplexity", "perplexity_per_char"])
def test_the_rows_are_the_validation_rows_and_groups_stay_together(
    name: str, tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer, poems: dict[str, list[str]]
) -> None:
    texts = poems["validation"][:12]
    parts = {"train": poems["train"][:20], "validation": texts}
    rows = {
        split: [{"src_txt": text, "group": f"poem {row // 3}"} for row, text in enumerate(found)]
        for split, found in parts.items()
    }
    model = save_model(tmp_path / "model", decoder, tokenizer, {})
    config = TrainingConfig(data=DataConfig(path=write_rows(tmp_path / "rows", rows)))
    save_scores(tmp_path / "scores" / "000.npz", model, config, f"val/{name}")
    found, _ = read_scores([tmp_path / "scores" / "000.npz"], f"val/{name}", higher_is_better=False)
    scored = score(decoder, tokenizer, datasets.Dataset.from_dict({"src_txt": texts}))
    expected = {
        "loss": scored.nll.sum() / scored.tokens.sum(),
        "perplexity": scored.perplexity.value,
        "perplexity_per_char": scored.perplexity_per_char.value,
    }
    assert found.value == pytest.approx(expected[name], rel=1e-4)
    assert (len(found.statistics), len(found.units)) == (12, 4)


@pytest.mark.parametrize("name", ["rougeL", "bleu"])
def test_a_measure_of_texts_is_of_what_the_model_writes_as_where_checkpoints_are_chosen_by_it(
    name: str, tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer, poems: dict[str, list[str]]
) -> None:
    rows = {
        split: [
            {"src_txt": text[:5], "tgt_txt": text[5:], "group": f"poem {row // 2}"} for row, text in enumerate(found)
        ]
        for split, found in (("train", poems["train"][:20]), ("validation", poems["validation"][:24]))
    }
    model = save_model(tmp_path / "model", decoder, tokenizer, {})
    config = TrainingConfig(
        data=DataConfig(path=write_rows(tmp_path / "rows", rows)),
        train=TrainConfig(select_by=name),
        task=TaskConfig(rows=20),
        generation=GenerationConfig(max_new_tokens=8),
    )
    save_scores(tmp_path / "scores.npz", model, config, f"val/{name}")
    found, labels = read_scores([tmp_path / "scores.npz"], f"val/{name}", higher_is_better=True)
    splits = load_splits(config.data, config.seed, extras=("group",))
    task = selection_task(config, splits["validation"], splits["train"], choose_places(config.data)["validation"])
    logged = scores(task, tokenizer, decoder, lambda: None)
    assert found.value == pytest.approx(logged[f"val/{name}"], abs=1e-9)
    assert len(found.statistics) == 20
    assert len(found.units) == len(set(labels)) <= 12


def test_all_measures_of_texts_can_be_read_again() -> None:
    texts, rows = ["甲乙丙，丁戊己。"] * 2, [TaskRow("甲", ["甲乙丙，丁戊己。"], [])] * 2
    found = [*bleu(texts, rows), *verse(texts, rows, None)]
    found += [each for name, metric in METRICS.items() if name != "slots" for each in metric(texts, rows)]
    assert {each.value_of.__name__ for each in found} <= KINDS.keys()


PAIR = [Outcome(0, {"lora.rank": "0"}, "finished", 0.4), Outcome(1, {"lora.rank": "8"}, "finished", 0.3)]


def confirmed(folder: Path, metric: str, scored: dict[str, list[float]], labels: list[str] | None = None) -> Any:
    """Of two trials, by a seed that both came to an end with: trial → a value of each row."""
    config = load_config("sweep", ["train.init_from=models/poems", f"metric={metric}", "confirm_seeds=1"])
    notes = {f"{number:03d}-seed43": {"value": 0.4 - number / 10} for number in (0, 1)}
    (folder / "scores").mkdir()
    for mark, values in scored.items():
        np.savez(
            folder / "scores" / f"{mark}-seed43.npz",
            statistics=np.stack([values, np.ones(len(values))], 1),
            labels=np.array(labels if labels and mark == "001" else [f"row {row}" for row in range(len(values))]),
            unread=np.zeros(len(values), bool),
            kind=np.array("ratio"),
        )
    study: Any = SimpleNamespace(ranked=lambda: PAIR, notes=notes, config=config)
    return confirmation_of(study, folder)


def test_the_verdict_is_by_the_sweeps_own_metric(tmp_path: Path) -> None:
    rows = np.linspace(0.1, 0.6, 40)
    found = confirmed(tmp_path, "val/rougeL", {"000": list(rows + 0.1), "001": list(rows)})
    assert found.test.verdict == "better"
    assert found.verdict.startswith("yes: val/rougeL of the same validation rows 0.45 and 0.35, difference +0.1")
    assert winner_of(PAIR, found) is PAIR[0]


@pytest.mark.parametrize(("metric", "verdict"), [("val/rougeL", "worse"), ("val/slot_error_rate", "better")])
def test_which_of_two_is_better_follows_from_the_metric(tmp_path: Path, metric: str, verdict: str) -> None:
    rows = np.linspace(0.1, 0.6, 40)
    found = confirmed(tmp_path, metric, {"000": list(rows), "001": list(rows + 0.1)})
    assert found.test.verdict == verdict
    assert winner_of(PAIR, found) is PAIR[verdict == "worse"]


def test_a_metric_without_scores_of_rows_changes_no_winner(tmp_path: Path) -> None:
    found = confirmed(tmp_path, "val/end_of_text_found", {})
    assert found.test is None
    assert found.verdict == "undecided: val/end_of_text_found isn't made up of scores of rows that could be compared"
    assert winner_of(PAIR, found) is PAIR[0]


@pytest.mark.parametrize("rows", [39, 40])
def test_scores_of_other_rows_arent_compared(tmp_path: Path, rows: int) -> None:
    values = list(np.linspace(0.1, 0.6, 40))
    others = [f"another {row}" for row in range(rows)]
    found = confirmed(tmp_path, "val/rougeL", {"000": values, "001": values[:rows]}, others)
    assert (found.test, found.verdict) == (None, "undecided: their validation rows aren't the same")
