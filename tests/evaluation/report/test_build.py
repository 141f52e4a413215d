"""From a trained model to the page that pipelines.evaluate writes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import mlflow
import pytest

from modules.config.generation import GenerationConfig
from modules.config.loader import load_config
from modules.evaluation.report.build import drawn, lengths, tally, training_curves
from modules.system.jsonl import write_jsonl
from pipelines.evaluate import evaluate
from pipelines.train import train
from tests.checkpoint.test_training_checkpoint import QUICK

QUIET = ["tracking.log_system_metrics=false", "generation.max_new_tokens=8", "prompts=[春]"]


@pytest.fixture
def model(store: Path, rows: datasets.Dataset) -> Path:
    config = load_config("pretrain", ["model=tiny", *QUICK, "train.max_steps=4", "train.validate_every_n_steps=2"])
    config.tracking.log_system_metrics = False
    made = train("pretrain", config, {"src_txt": rows["src_txt"][:60]})
    assert made.model
    return made.model


@pytest.fixture
def page(model: Path, store: Path, poems: dict[str, list[str]]) -> Callable[..., str]:
    write_jsonl(store / "test.jsonl.gz", [{"src_txt": text} for text in poems["test"][:12]])

    def made(*arguments: str) -> str:
        found = evaluate(
            load_config(
                "evaluate", [*QUIET, f"model={model}", "data.path=null", "data.test_path=test.jsonl.gz", *arguments]
            )
        )
        text: str = mlflow.artifacts.load_text(f"runs:/{found.run_id}/report.html")
        return text

    return made


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "temperature 1, top-p 1, seed None; at most 128 tokens"),
        ({"temperature": 0.0, "max_new_tokens": 9}, "greedy; at most 9 tokens"),
        ({"min_p": 0.1, "seed": 3}, "temperature 1, top-p 1, seed 3, min_p 0.1; at most 128 tokens"),
        ({"temperature": 0.0, "repetition_penalty": 1.5}, "greedy, repetition_penalty 1.5; at most 128 tokens"),
    ],
)
def test_the_report_says_how_texts_were_written(given: dict[str, Any], said: str) -> None:
    assert drawn(GenerationConfig(**given)) == said


def test_an_evaluation_leaves_its_report_with_the_run(
    page: Callable[..., str], model: Path, capsys: pytest.CaptureFixture[Any]
) -> None:
    text = page("task=poetry", "task.rows=6", f"champion={model}")
    for part in ("Poetry:", "Perplexity per character", "Ended by itself", "The same on every row", "Lines of a poem"):
        assert part in text
    for part in ("Loss (nats a token)", "Learning to stop", "Worst", "Best", "Samples", "trained by run"):
        assert part in text
    said = capsys.readouterr().out
    place = next(line.split(maxsplit=1)[1].strip() for line in said.splitlines() if line.strip().startswith("page"))
    assert Path(place).read_text(encoding="utf-8") == text


def test_without_texts_the_rows_are_ranked_by_their_own_perplexity(
    page: Callable[..., str], poems: dict[str, list[str]], model: Path
) -> None:
    text = page("ngram_floor=false")
    assert "Lines of a poem" not in text
    assert sum(poem.splitlines()[0][:8] in text for poem in poems["test"][:12]) == 12  # six worst and six best


def test_curves_of_a_run_that_the_store_does_not_know_are_left_out(store: Path) -> None:
    assert training_curves("0" * 32) == training_curves(None) == {}


def test_values_are_counted_in_order_and_the_largest_together() -> None:
    assert tally(iter([4, 2, 4, 13, 40]), most=12) == {"2": 1.0, "4": 2.0, "> 12": 2.0}
    assert lengths([]) == {}
