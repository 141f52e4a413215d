"""What a training run says of its rows: where each split comes from, and what of it is a copy or doesn't come back."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import yaml
from mlflow import MlflowClient

from modules.config.loader import load_config
from modules.data.arrow import fingerprint
from modules.data.rows import load_rows
from modules.evaluation.task_rows import copies_in_training, known_training_rows
from modules.tracking.stage_run import log_rows, stage_run
from pipelines.finetune import finetune
from pipelines.pretrain import pretrain
from pipelines.train import TrainResult, set_up_training
from tests.checkpoint.test_training_checkpoint import QUICK
from tests.tracking.test_tracking import quiet

QUIET = ["tracking.log_system_metrics=false", "train.max_steps=1", "train.max_epochs=null"]
OWN = [f"春{number}" for number in range(8)]


def write(path: Path, *texts: str) -> Path:
    path.write_text("\n".join(["src_txt", *texts]) + "\n", encoding="utf-8")
    return path


def inputs(made: TrainResult) -> dict[str, tuple[str, str]]:
    """Split → (name of the data set, fingerprint) in MLflow."""
    found = MlflowClient().get_run(made.run_id).inputs.dataset_inputs
    return {entry.tags[0].value: (entry.dataset.name, entry.dataset.digest) for entry in found}


def test_rows_with_other_answers_have_another_digest(store: Path) -> None:
    """Scores under the same digest can be compared; how rows are grouped changes none."""
    usual = {"src_txt": ["问"], "tgt_txt": ["答"]}
    others = [
        {name: [value]} for name in ("references", "slots", "choices", "answer") for value in ('["答"]', '["对"]')
    ]
    with stage_run("evaluate", quiet()) as run:
        digests = [
            log_rows(run, datasets.Dataset.from_dict(usual | other), "rows.jsonl", "test")
            for other in ({}, *others, {"group": ["一"]})
        ]
    assert len(set(digests)) == 1 + len(others)
    assert digests[0] == digests[-1] == fingerprint(datasets.Dataset.from_dict(usual))


def test_rows_from_python_are_named_as_such(store: Path) -> None:
    config = load_config("pretrain", ["model=tiny", *QUICK, *QUIET])
    assert config.data.path == "prepared/sample/poems"
    made = pretrain(config, {"src_txt": OWN})
    assert made.model
    found = inputs(made)
    assert {name: one for name, (one, _) in found.items()} == {
        "train": "rows in memory-train",
        "validation": "rows in memory-validation",
    }
    origin = yaml.safe_load((made.model / "run.yaml").read_text(encoding="utf-8"))
    assert origin["config"]["data"]["path"] is None
    assert origin["sources"]["train"] == "rows in memory"
    assert {split: digest[:32] for split, digest in origin["data"].items()} == {n: d for n, (_, d) in found.items()}
    assert MlflowClient().get_run(made.run_id).data.params["cfg.data.path"] == "None"
    assert known_training_rows(made.model, None) is None


def test_each_split_is_logged_with_its_own_source_and_doubts(store: Path) -> None:
    train, mine = write(store / "train.csv", *OWN), write(store / "mine.csv", OWN[0], OWN[1], "夏")
    places = [f"data.path={train}", f"data.validation_path={mine}", f"data.test_path={train}"]
    made = pretrain(load_config("pretrain", ["model=tiny", *QUICK, *QUIET, *places]))
    expected = {"train": f"{store.name}-train", "validation": "mine.csv-validation"}  # any folder may have a train.csv
    assert {name: one for name, (one, _) in inputs(made).items()} == expected
    assert inputs(made)["validation"][1] == fingerprint(load_rows(mine))[:32]
    logged = MlflowClient().get_run(made.run_id).data
    counts = {name: logged.metrics[f"rows/{name}_in_training"] for name in ("validation", "test")}
    assert counts == {"validation": 2, "test": 8}
    assert logged.metrics["rows/train_lost_characters"] == 0
    assert logged.tags["rows.validation"] == f"3 of {mine}; also among the training rows: 2"
    assert made.plan.describe()["validation rows"] == logged.tags["rows.validation"]
    assert made.plan.describe()["  from"] == str(train)
    assert made.model
    assert copies_in_training(load_rows(mine), made.model, None).tolist() == [True, True, False]
    write(train, "冬")
    assert copies_in_training(load_rows(mine), made.model, None) is None


def test_held_out_rows_of_a_group_that_is_trained_on_are_counted(store: Path) -> None:
    (store / "mine").mkdir()
    for name, labels in (("train", "甲乙丙"), ("valid", "丙丁"), ("test", "戊")):
        rows = "".join(f"{name}{number},{label}\n" for number, label in enumerate(labels))
        (store / "mine" / f"{name}.csv").write_text(f"src_txt,passage\n{rows}", encoding="utf-8")
    data = [f"data.path={store / 'mine'}", "data.columns.passage=group"]
    made = pretrain(load_config("pretrain", ["model=tiny", *QUICK, *QUIET, *data]))
    logged = MlflowClient().get_run(made.run_id).data
    counts = {name: logged.metrics[f"rows/{name}_related_to_training"] for name in ("validation", "test")}
    assert counts == {"validation": 1, "test": 0}
    assert logged.tags["rows.validation"].endswith("; of a group that training rows are of: 1")
    assert made.plan.describe()["validation rows"] == logged.tags["rows.validation"]


def bert_vocabulary(folder: Path) -> Path:
    folder.mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "。", "春", *"0123"]
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    return folder


def test_the_plan_tells_what_a_vocabulary_loses(store: Path) -> None:
    arguments = ["model=tiny", *QUICK, *QUIET, f"tokenizer.path={bert_vocabulary(store / 'bert')}"]
    plan = set_up_training(load_config("pretrain", arguments), {"src_txt": ["春0", "春1\n春2", "鱻2", "春3"]}).plan
    lost = [line for name, line in plan.describe().items() if "lost" in name]
    assert sum(facts.lost.count for facts in plan.splits.values() if facts.lost) == 2
    assert any("'\\n' 1×" in line and "doesn't give them back" in line for line in lost)
    pairs = {"src_txt": ["春0", "春1"], "tgt_txt": ["春2", "春3"]}
    config = load_config("pretrain", arguments)
    config.data.prompt_template = "{src_txt}\n"
    with pytest.raises(ValueError, match=r"data\.prompt_template='\{src_txt\}\\n': the tokenizer loses '\\n'"):
        set_up_training(config, pairs)
    config.data.prompt_template = "{src_txt}。"
    assert set_up_training(config, pairs).tokenizer.prompt_template == "{src_txt}。"


def test_the_plan_tells_of_ends_that_are_never_trained() -> None:
    config = load_config("pretrain", ["model=tiny", *QUICK, "data.sequence_length=4", "data.over_long=cut"])
    lines = set_up_training(config, {"src_txt": ["春眠不觉晓"] * 4}).plan.describe()
    assert lines["  cut off"] == "6 of 21 tokens (28.6%); data.sequence_length=256, the model's window, cuts least"
    assert "won't learn to stop" in lines["  no ends"]
    config.data.over_long = "split"
    lines = set_up_training(config, {"src_txt": ["春眠不觉晓"] * 4}).plan.describe()
    assert not {"  cut off", "  no ends"} & lines.keys()
    config.data.prompt_template = "{src_txt}，"
    config.data.sequence_length = 64
    lines = set_up_training(config, {"src_txt": ["春眠"] * 4, "tgt_txt": ["晓"] * 4}).plan.describe()
    # Of three rows each: start, two characters, three bytes of the template, target; the end is a label alone.
    assert lines["tokens an epoch"] == "21 read, 6 trained on"


def test_finetuning_with_rows_of_another_kind_is_refused_before_a_run(store: Path) -> None:
    plain, pairs = write(store / "plain.csv", *OWN), store / "pairs.csv"
    pairs.write_text("src_txt,tgt_txt\n春,夏\n秋,冬\n", encoding="utf-8")
    for path, other in ((plain, pairs), (pairs, plain)):
        places = [f"data.path={path}", f"data.validation_path={other}", "dry_run=true"]
        with pytest.raises(ValueError, match="give all splits the same columns"):
            finetune(load_config("finetune", ["train.init_from=models/poems", *QUIET, *places]))
