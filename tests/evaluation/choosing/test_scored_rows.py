"""Which rows a model is scored on, and what is said of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from modules.config.data import DataConfig
from modules.config.loader import load_config
from modules.data.arrow import fingerprint
from modules.data.quarantine import DataError
from modules.data.splits import load_splits
from modules.evaluation.choosing.scored_rows import choose_rows, load_task_rows
from modules.evaluation.task_evaluation import TaskRows
from modules.tokenizer.tokenizer import Tokenizer
from pipelines.evaluate import evaluate
from pipelines.pretrain import pretrain
from pipelines.register import register
from tests.checkpoint.test_training_checkpoint import QUICK
from tests.helpers.models import make_config, make_decoder, save_model

PLAIN = [{"src_txt": f"春眠不觉晓{number}，处处闻啼鸟。"} for number in range(12)]
PAIRS = [{"frage": f"问{number}", "antwort": f"答{number}"} for number in range(12)]
MINE = {"frage": "src_txt", "antwort": "tgt_txt"}
QUIET = ["tracking.log_system_metrics=false"]


def write(folder: Path, **splits: list[dict[str, str]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder.name


def trained(tokenizer: Tokenizer, folder: Path, section: dict[str, Any], **facts: Any) -> Path:
    """A model whose run.yaml is that of a training on these rows."""
    config = DataConfig(**section)
    digests = {name: fingerprint(rows) for name, rows in load_splits(config, 5).items()} if config.path else {}
    asked = tokenizer.with_prompt_template("{src_txt}：" if config.columns else None)
    run = {"stage": "finetune", "config": {"seed": 5, "data": asdict(config)}, "data": digests} | facts
    return save_model(folder, make_decoder(make_config(tokenizer.vocab_size)), asked, run)


def rows_for(stage: str, model: Path, *arguments: str) -> TaskRows:
    config = load_config(stage, [f"model={model}", *arguments])
    config, chosen = choose_rows(config, config.model, model)
    return load_task_rows(config, chosen)


@pytest.mark.parametrize("stage", ["evaluate", "register"])
def test_a_model_is_scored_on_the_rows_of_its_own_training(store: Path, tokenizer: Tokenizer, stage: str) -> None:
    path = write(store / "mine", train=PAIRS, validation=PAIRS[:3], test=PAIRS[:5])
    model = trained(tokenizer, store / "model", {"path": path, "columns": MINE, "max_rows": 4})
    rows = rows_for(stage, model)
    assert rows.test["tgt_txt"] == [f"答{number}" for number in range(5)]  # a test takes all of them
    assert str(rows.place) == "mine/test.jsonl (of the model's own training)"
    assert rows.train is not None
    assert len(rows.train) == 12  # n-grams of the four that it was trained on would be a floor that every model passes
    few = rows_for(stage, model, "data.max_rows=2")
    assert few.train is not None
    assert (len(few.test), len(few.train)) == (2, 12)
    assert "changed" not in str(few.place)


def test_a_test_file_of_the_training_counts_before_its_folder(store: Path, tokenizer: Tokenizer) -> None:
    path = write(store / "mine", train=PLAIN, test=PLAIN[:2])
    write(store / "more", apart=PLAIN[:7])
    model = trained(tokenizer, store / "model", {"path": path, "test_path": "more/apart.jsonl"})
    rows = rows_for("evaluate", model)
    assert (len(rows.test), str(rows.place)) == (7, "more/apart.jsonl (of the model's own training)")


def test_rows_that_the_command_names_win_and_nothing_is_said_of_the_training(store: Path, tokenizer: Tokenizer) -> None:
    path = write(store / "mine", train=PAIRS, test=PAIRS)
    write(store / "others", train=PLAIN, test=PLAIN[:3])
    model = trained(tokenizer, store / "model", {"path": path, "columns": MINE})
    few = rows_for("evaluate", model, "data.path=others", "data.max_rows=2")
    assert few.train is not None
    assert (len(few.test), len(few.train)) == (
        2,
        11,
    )  # all but the one that is held out: n-grams of two rows would be no floor
    for given in ("data.path=others", "data.test_path=others"):
        rows = rows_for("register", model, given)
        assert rows.test.column_names == ["src_txt"]
        assert str(rows.place) == "others/test.jsonl"


def test_rows_that_have_changed_since_are_named(store: Path, tokenizer: Tokenizer) -> None:
    path = write(store / "mine", train=PLAIN, validation=PLAIN[:2], test=PLAIN[:5])
    new = trained(tokenizer, store / "new", {"path": path})
    digests = {name: fingerprint(rows) for name, rows in load_splits(DataConfig(path=path), 5).items()}
    old = trained(tokenizer, store / "old", {"path": path}, data={"train": digests["train"]})
    assert "changed" not in str(rows_for("register", new).place) + str(rows_for("register", old).place)
    write(store / "mine", test=PLAIN[1:6])
    said = "mine/test.jsonl (of the model's own training; they have changed since then)"
    assert str(rows_for("register", new).place) == said
    assert str(rows_for("register", new, "data.max_rows=3").place) == said
    write(store / "mine", train=PLAIN[1:], test=PLAIN[:5])
    assert str(rows_for("register", new).place) == "mine/test.jsonl (of the model's own training)"
    assert str(rows_for("register", old).place) == said  # of whose test rows nothing was kept


@pytest.mark.parametrize("config", [{"path": "mine.jsonl"}, {"path": "mine.jsonl", "validation_path": "held.jsonl"}])
def test_a_training_without_test_rows_has_its_validation_rows_scored(
    store: Path, tokenizer: Tokenizer, config: dict[str, str]
) -> None:
    write(store, mine=PLAIN, held=PLAIN[:4])
    config = config | {"validation_fraction": 0.25}  # type: ignore[dict-item]
    model = trained(tokenizer, store / "model", config)
    rows = rows_for("evaluate", model)
    expected = load_splits(DataConfig(**config), 5)  # type: ignore[arg-type]
    assert rows.test["src_txt"] == expected["validation"]["src_txt"]
    assert rows.train is not None
    assert rows.train["src_txt"] == expected["train"]["src_txt"]
    said = "of the model's own training; its validation rows, which chose its checkpoint, as it has no test rows"
    assert str(rows.place).endswith(f"({said})")
    assert len(rows_for("evaluate", model, "data.max_rows=2").test) == 2
    named = rows_for("evaluate", model, "data.path=mine.jsonl")  # as main hands them on
    assert named.test["src_txt"] == rows.test["src_txt"]
    with pytest.raises(DataError, match="no test rows here"):
        rows_for("evaluate", model, "data.path=held.jsonl")


@pytest.mark.parametrize(
    ("data", "facts", "said"),
    [
        ({}, {}, "was trained on rows in memory"),
        ({}, {"config": None}, "doesn't tell which rows it was trained on"),
        ({}, {"config": {"data": "x"}}, "doesn't tell which rows it was trained on"),
        ({}, {"config": {"data": {"max_rows": "many"}}}, "doesn't tell which rows it was trained on"),
        ({}, {"stage": "convert", "source": {"format": "gguf"}}, "doesn't tell which rows it was trained on"),
    ],
)
def test_a_model_that_names_no_rows_is_refused_with_the_keys_to_give(
    store: Path, tokenizer: Tokenizer, data: dict[str, str], facts: dict[str, Any], said: str
) -> None:
    if facts.get("stage") == "convert":
        facts = facts | {"config": {"source": "x"}}
    model = trained(tokenizer, store / "model", data, **facts)
    keys = r"give data\.path=FOLDER with test rows, data\.test_path=FILE, or data=NAME \(couplets,"
    for stage in ("evaluate", "register"):
        with pytest.raises(DataError, match=f"model={model} {said}, so that these must be named: {keys}"):
            rows_for(stage, model)


def test_rows_that_are_gone_are_refused_saying_where_they_were_looked_for(
    store: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(store / "mine", train=PLAIN, test=PLAIN)
    model = trained(tokenizer, store / "model", {"path": path})
    (store / "elsewhere").mkdir()
    monkeypatch.chdir(store / "elsewhere")
    with pytest.raises(DataError, match=r"mine.*trained on, by its run\.yaml; a relative path is looked for from the "):
        rows_for("register", model)


def test_a_task_brings_its_data_set_where_the_model_has_no_rows_for_it(store: Path, tokenizer: Tokenizer) -> None:
    pairs = [{"src_txt": row["frage"], "tgt_txt": row["antwort"]} for row in PAIRS]
    write(store / "prepared" / "summarization", train=pairs, test=pairs[:4])
    write(store / "prepared" / "sample" / "quatrains", train=PLAIN, test=PLAIN[:3])
    mine = write(store / "mine", train=PAIRS, test=PAIRS[:5])
    verse = write(store / "verse", train=PLAIN, test=PLAIN[:6])
    tuned = trained(tokenizer, store / "tuned", {"path": mine, "columns": MINE})
    plain = trained(tokenizer, store / "plain", {"path": verse})
    unknown = trained(tokenizer, store / "unknown", {})
    found = {
        (model.name, task): str(rows_for("evaluate", model, f"task={task}").place)
        for model in (tuned, plain, unknown)
        for task in ("summarization", "poetry")
    }
    its_own, the_tasks = "of the model's own training", "the data set of task="
    assert found == {
        ("tuned", "summarization"): f"mine/test.jsonl ({its_own})",
        ("tuned", "poetry"): f"mine/test.jsonl ({its_own})",
        ("plain", "summarization"): f"prepared/summarization/test.jsonl ({the_tasks}summarization)",
        ("plain", "poetry"): f"verse/test.jsonl ({its_own})",
        ("unknown", "summarization"): f"prepared/summarization/test.jsonl ({the_tasks}summarization)",
        ("unknown", "poetry"): f"prepared/sample/quatrains/test.jsonl ({the_tasks}poetry)",
    }
    config = load_config("evaluate", [f"model={plain}", "task=summarization", "data.path=mine"])
    assert choose_rows(config, "plain", plain)[0].data.prompt_template == "{src_txt}\n寓意："  # still the task's
    with pytest.raises(ValueError, match=r"task\.data=nosuch .*must be one of couplets"):
        rows_for("evaluate", plain, "task.data=nosuch")


def test_a_training_is_scored_and_registered_without_naming_its_rows(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(store / "mine", train=PLAIN * 2, validation=PLAIN[:4], test=PLAIN[4:8])
    steps = [f"data.path={path}", "train.max_steps=2", "train.max_epochs=null", *QUIET]
    made = pretrain(load_config("pretrain", ["model=tiny", *QUICK, *steps]))
    assert made.model
    capsys.readouterr()
    found = evaluate(load_config("evaluate", [f"model={made.model}", "generation.max_new_tokens=4", *QUIET]))
    said = capsys.readouterr().out
    assert "rows of mine/test.jsonl (of the model's own training); also among the training rows: 4" in said
    assert [sample["prompt"] for sample in found.samples] == [f"春眠不觉晓{number}，" for number in (4, 5, 6)]
    done = register(load_config("register", [f"model={made.model}", *QUIET]))
    said = capsys.readouterr().out
    assert done
    assert "measure perplexity per char against nobody: no version is champion yet and against n-grams" in " ".join(
        said.split()
    )
    assert "4 rows of plain text of mine/test.jsonl (of the model's own training)" in said
    assert (
        MlflowClient().get_model_version("moyun", "1").tags["test_rows"].startswith("mine/test.jsonl (of the model's")
    )
    assert register(load_config("register", [f"model={made.model}", "dry_run=true", *QUIET])) is None
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "against version 1, the champion and against n-grams test rows 4 rows of plain text of mine/test.jsonl" in said
    )
