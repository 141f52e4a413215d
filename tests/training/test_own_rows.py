"""A training of somebody's own rows, none of whose numbers are given."""

from __future__ import annotations

from pathlib import Path

import datasets
import mlflow
import pytest

from modules.checkpoint.loading import open_tokenizer
from modules.config.loader import load_config
from modules.system.bounded_read import read_plain_yaml
from modules.tokenizer.tokenizer import Tokenizer
from pipelines.evaluate import evaluate
from pipelines.finetune import finetune
from tests.helpers.models import make_config, make_decoder, save_model

QUIET = ["tracking.log_system_metrics=false", "trainer.progress_bar=false", "train.sample_prompts=[]"]
PAIRS = {
    "src_txt": ["春眠不觉晓" * 30] * 10 + ["床前明月光"] * 30,
    "tgt_txt": ["处处闻啼鸟"] * 39 + ["花" * 200],
}
"""40 pairs: ten sources, and the last answer, are longer than the window of 96 tokens."""
ROWS = datasets.DatasetDict(train=datasets.Dataset.from_dict(PAIRS), validation=datasets.Dataset.from_dict(PAIRS))


@pytest.fixture
def model(store: Path, tokenizer: Tokenizer) -> Path:
    return save_model(store / "model", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})


def test_the_plan_says_in_words_what_will_be_done(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"train.init_from={model}", "dry_run=true", *QUIET]
    config = load_config("finetune", arguments)
    lines = finetune(config, rows=ROWS).plan.describe()
    assert config.train.max_epochs is None  # what was given stays as it was
    assert lines["recipe"].startswith("own, worked out from rows and model: data.sequence_length, ")
    assert lines["tokens a row"] == "at most 96 (the model's window; the longest has 207)"
    assert "11 cut at the end of the source, 1 of them of the answer too" in lines["rows"]
    assert lines["  cut off"].endswith("; the model's window is 96 tokens")
    assert lines["steps"] == "120 (3.00 epochs)"  # 40 rows, one a step
    assert "the model's loss on these rows is" in lines["learning rate"]
    shorter = finetune(load_config("finetune", [*arguments, "data.sequence_length=32"]), rows=ROWS).plan.describe()
    assert shorter["  cut off"].endswith("; data.sequence_length=96, the model's window, cuts least")


def test_what_came_of_it_stands_in_run_and_model_and_prompts_are_cut_as_training_cut_them(
    model: Path, store: Path
) -> None:
    given = [f"train.init_from={model}", "train.max_steps=2", "data.sequence_length=48", *QUIET]
    config = load_config("finetune", [*given, "output_dir=out"])
    made = finetune(config, rows=ROWS)
    assert made.model is not None
    recorded = read_plain_yaml(made.model / "run.yaml")["config"]
    assert (recorded["train"]["batch_size"], recorded["train"]["schedule"]) == (1, "cosine")
    assert (recorded["train"]["max_steps"], recorded["train"]["max_epochs"]) == (2, None)
    run = mlflow.get_run(made.run_id)
    assert run.data.params["cfg.train.learning_rate"] == str(recorded["train"]["learning_rate"])
    assert run.info.run_name.startswith("finetune length=48 from=")  # what was given, and not what came of it
    taught = open_tokenizer(made.model)
    before, after = taught.prompt_parts
    assert taught.source_limit == 49 - len(before) - len(after) - 6  # the answer of five, and its end
    test = store / "test.csv"
    test.write_text(f"src_txt,tgt_txt\n{PAIRS['src_txt'][0]},处处闻啼鸟\n{PAIRS['src_txt'][-1]},花\n", encoding="utf-8")
    scored = load_config(
        "evaluate", [f"model={made.model}", f"data.test_path={test}", "task.metrics=[rouge]", QUIET[0]]
    )
    assert evaluate(scored).evaluations["model"].counts["prompts_cut"] == 1
    again = finetune(load_config("finetune", [*given, "output_dir=out"]), rows=ROWS)
    assert again.run_id == made.run_id
