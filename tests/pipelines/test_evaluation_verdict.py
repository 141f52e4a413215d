"""What an evaluation says of a model: against which floor, who is best, and what the model is called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from modules.evaluation.report.naming import model_name
from modules.tokenizer.tokenizer import Tokenizer
from modules.tracking.stage_run import connect
from pipelines.cli.summaries import counted_rows
from tests.helpers.models import make_config, make_decoder, save_model
from tests.pipelines.test_evaluate import run, write_rows

POEM = "白日依山尽黄河入海流欲穷千里目更上一层楼"


def save(folder: Path, tokenizer: Tokenizer, facts: dict[str, Any] | None = None) -> Path:
    return save_model(folder, make_decoder(make_config(tokenizer.vocab_size)), tokenizer, facts or {})


@pytest.mark.parametrize("trained_with", [None, 2])
def test_n_grams_are_counted_on_all_training_rows_however_few_rows_are_scored(
    store: Path, tokenizer: Tokenizer, trained_with: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a few they are a floor that every model passes."""
    rows = [{"src_txt": POEM[at:] + POEM[:at]} for at in range(20)]
    data = write_rows(store / "rows", train=rows, validation=rows[:2], test=rows[::5])
    facts = {"config": {"seed": 42, "data": {"path": str(data), "max_rows": trained_with}}} if trained_with else {}
    arguments = [f"model={save(store / 'model', tokenizer, facts)}", f"data.path={data}", "prompts=[]"]
    whole, few = run(*arguments).evaluations, run(*arguments, "data.max_rows=2").evaluations
    again = run(*arguments[:1], f"data.path={data}", "data.test_path=rows/test.jsonl", "prompts=[]").evaluations
    assert len(few["model"]["perplexity_per_char"].statistics) == 2
    for name in ("unigram", "bigram", "trigram"):
        rows_of = [found[name]["perplexity_per_char"].statistics[:2] for found in (whole, few, again)]
        assert (rows_of[0] == rows_of[1]).all()
        assert (rows_of[0] == rows_of[2]).all()
    assert capsys.readouterr().out.count("n-grams, nearest rows and examples of 20 rows of") == 3


def test_the_end_of_the_whole_way_says_which_rows_n_grams_are_counted_on() -> None:
    assert counted_rows(None) == "its fine-tuning rows"
    assert "first 80" in counted_rows(80)


def test_the_text_of_the_right_length_stands_first_and_the_verdict_last(
    store: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"src_txt": POEM[at:] + "。" + POEM * 3, "tgt_txt": POEM[at:] + "。"} for at in range(12)]
    data = write_rows(store / "rows", train=rows, test=rows)
    place = save(store / "model", tokenizer)
    arguments = ["task.metrics=[rouge,length]", "task.trivial=[lead,copy]", "prompts=[]"]
    found = run(f"model={place}", f"data.path={data}", *arguments)
    printed = capsys.readouterr().out
    table = printed[printed.index("length ratio") :]
    assert re.match(r"length ratio +lead +1 ", table)
    assert table.index("lead") < table.index("copy")
    assert found.evaluations["copy"]["length_ratio"].value > 3
    said = re.search(r"verdict +(By ROUGE-L .*)", printed)
    assert said
    assert "worse than lead (1.000; p < 0.001)" in said[1]
    page: str = mlflow.artifacts.load_text(f"runs:/{found.run_id}/report.html")
    assert "worse than lead" in page
    assert "best at 1" in page
    assert MlflowClient().get_run(found.run_id).data.tags["verdict"] == said[1].strip()


def test_a_model_is_called_by_what_says_something(store: Path, tokenizer: Tokenizer) -> None:
    connect()
    with mlflow.start_run(run_name="finetune lr=1e-3") as made:
        mlflow.log_metric("val/loss", 1.0)
    facts = {"run_id": made.info.run_id, "stage": "finetune", "rows": {"train": 8139},
             "config": {"data": {"path": "prepared/sample/quatrains"}}}  # fmt: skip
    by_run = model_name("models:/m-a98040c7e1f44c2db7c0", save(store / "a", tokenizer, facts))
    assert re.fullmatch(r"finetune lr=1e-3, [\d,.]+M? parameters, 8,139 rows of quatrains", by_run)
    gone = save(store / "b", tokenizer, facts | {"run_id": "0" * 32})
    assert model_name(str(gone), gone).startswith("finetune, ")
    bare = save(store / "c", tokenizer)
    assert model_name(str(bare), bare).startswith(f"{bare}, ")
    assert model_name("models:/poems/7", bare) == "poems version 7"
    client = MlflowClient()
    client.create_registered_model("poems")
    client.create_model_version("poems", str(bare))
    client.set_registered_model_alias("poems", "champion", "1")
    assert model_name("models:/poems@champion", bare) == "poems version 1 (champion)"
