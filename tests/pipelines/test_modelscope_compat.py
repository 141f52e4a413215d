"""Scripts that were written for ModelScope run on moyun's stages; what can't be taken is refused by name."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from modules.config.loader import load_config
from modules.data.rows import load_rows
from modules.training.optimizer import learning_rate_factor
from pipelines.modelscope_compat import MsDataset, Tasks, Trainers, build_trainer, pipeline, read_config
from pipelines.modelscope_compat.recipe import Node, configured, noam_warmup
from tests.helpers.models import ROOT, make_config, make_decoder, save_model
from tests.helpers.snippets import snippets

MODEL = "damo/nlp_gpt3_text-generation_1.3B"


def noam(warmup: int) -> Callable[[int], float]:
    return lambda step: min((step + 1) ** -0.5, (step + 1) * warmup**-1.5)


@pytest.fixture
def place(store: Path, tokenizer: Any, poems: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the card's script names: a downloaded model, and a folder of rows."""
    cache = store / "cache"
    decoder = make_decoder(make_config(tokenizer.vocab_size, max_position_embeddings=128), spread=1.0)
    save_model(cache / "hub" / "models" / MODEL.replace(".", "___"), decoder, tokenizer, {})
    monkeypatch.setenv("MODELSCOPE_CACHE", str(cache))
    folder = store / "chinese-poetry-collection"
    folder.mkdir()
    for split, count in (("train", 24), ("test", 5)):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text1"], *([poem] for poem in poems[split][:count])])
    return store


def script() -> str:
    """The one that docs/modelscope.md shows."""
    pieces = snippets(ROOT / "docs" / "modelscope.md", ROOT)
    (found,) = [piece.text for piece in pieces if "from pipelines.modelscope_compat" in piece.text]
    return found


def trainer(**more: Any) -> Any:
    rows = MsDataset.load("chinese-poetry-collection")["train"].remap_columns({"text1": "src_txt"})
    given = {"model": MODEL, "train_dataset": rows, "eval_dataset": rows, "work_dir": "out", "max_epochs": 1}
    return build_trainer(name=Trainers.gpt3_trainer, default_args=given | more)


def test_the_cards_script_runs_after_one_changed_line(place: Path) -> None:
    variables: dict[str, Any] = {}
    exec(compile(script(), "card", "exec"), variables)
    config = yaml.safe_load((place / "gpt3_poetry" / "model" / "run.yaml").read_text(encoding="utf-8"))
    said = config["config"]["train"]
    assert (said["schedule"], said["warmup_steps"], said["learning_rate"]) == ("noam", 100, 3e-4)
    assert (said["batch_size"], said["max_epochs"], said["optimizer"]) == (16, 10, "adamw")
    assert config["rows"] == {"train": 24, "validation": 5}
    scores = variables["trainer"].evaluate()
    assert scores["perplexity_per_char"] == pytest.approx(config["metrics"]["val/perplexity_per_char"], rel=1e-4)
    pipe = pipeline(Tasks.text_generation, model="gpt3_poetry", temperature=0)
    text = pipe("白日", max_length=8)["text"]
    assert text.startswith("白日")
    assert pipe(["白日", {"text": "春"}], max_length=8)[0]["text"] == text
    with pytest.raises(ValueError, match=r"max_length=2 counts the prompt too, which has \d tokens"):
        pipe("白日", max_length=2)


def test_conversations_are_rows_that_the_trainer_reads(place: Path) -> None:
    said = [{"from": "human", "value": "春"}, {"from": "gpt", "value": "山"}]
    (place / "talks.json").write_text(json.dumps([{"conversations": said}] * 6))
    rows = MsDataset.load("talks.json", split="train").remap_columns({"conversations": "messages"}).rows
    (read, *_) = load_rows(datasets.DatasetDict({"train": rows}), split="train")
    assert (read["src_txt"], read["tgt_txt"]) == ("春", "山")


def test_pairs_that_are_mapped(place: Path) -> None:
    """The card's second script puts a line end after each source."""
    folder = place / "pairs"
    folder.mkdir()
    for split in ("train", "validation"):
        rows = ({"text1": f"问{n}", "text2": f"答{n}"} for n in range(6))
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    found = MsDataset.load("pairs")
    assert list(found) == ["train", "validation"]
    named = found["validation"].remap_columns({"text1": "src_txt", "text2": "tgt_txt"})
    mapped = named.map(lambda row: {"src_txt": row["src_txt"] + "\n"})
    assert mapped.rows[1] == {"src_txt": "问1\n", "tgt_txt": "答1"}
    assert MsDataset.load("pairs", split="train").remap_columns({"text2": "src_txt"}).rows["src_txt"][0] == "答0"
    with pytest.raises(ValueError, match="remap_columns comes before map"):
        mapped.remap_columns({"a": "src_txt"})
    with pytest.raises(
        ValueError, match=r"MsDataset\.load\('DuReader_robust-QG'\): no such file or folder; nothing is"
    ):
        MsDataset.load("DuReader_robust-QG")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"eval_datase": None}, r"eval_datase: did you mean eval_dataset\?"),
        ({"launcher": "pytorch"}, r"launcher='pytorch' isn't known here: leave it out, .*\['trainer.devices=N'\]"),
        ({"remove_unused_data": True}, r"remove_unused_data=True isn't known here"),
        ({"cfg_modify_fn": lambda c: c.train.optimizer.update(type="SGD")}, r"optimizer\.type='SGD' .*optimizer=muon"),
        ({"cfg_modify_fn": lambda c: c.train.update(lr_shedule=1)}, r"train\.lr_shedule=1 isn't known here"),
        ({"cfg_modify_fn": lambda c: c.train.lr_scheduler.update(lr_lambda=lambda s: 0.9**s)}, r"schedule=cosine"),
        ({"cfg_modify_fn": lambda c: c.train.lr_scheduler.update(options={"by_epoch": True})}, r"by_epoch=True"),
        ({"cfg_modify_fn": lambda c: c.train.hooks.append({"type": "EvaluationHook", "interval": 5})}, r"validate_e"),
        ({"cfg_modify_fn": lambda c: c.model.update(tensor_model_parallel_size=2)}, r"trainer\.tensor_parallel=N"),
        ({"keys": ["train.learnin_rate=1"]}, r"did you mean train\.learning_rate\?"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_by_name(place: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        trainer(**given).train()
    assert not (place / "out").exists()


def test_another_trainer_or_no_rows_are_refused() -> None:
    for arguments in ({"name": "other", "default_args": {"model": "m", "train_dataset": []}}, {"default_args": {}}):
        with pytest.raises(ValueError, match=r"name=Trainers\.gpt3_trainer is known here, and default_args with model"):
            build_trainer(**arguments)  # type: ignore[arg-type]


def test_a_folders_own_recipe_counts_where_the_script_says_nothing(place: Path) -> None:
    folder = shutil.copytree(place / "cache" / "hub" / "models" / MODEL.replace(".", "___"), place / "own")
    recipe = {
        "task": "text-generation", "preprocessor": {"type": "x", "sequence_length": 64},
        "train": {
            "work_dir": "/tmp", "max_epochs": 3, "dataloader": {"batch_size_per_gpu": 2, "workers_per_gpu": 0},
            "optimizer": {"type": "AdamW", "lr": 1e-3, "betas": [0.8, 0.9]}, "hooks": [{"type": "IterTimerHook"}],
        },
    }  # fmt: skip
    (folder / "configuration.json").write_text(json.dumps(recipe))
    assert read_config("own").train.optimizer.lr == 1e-3

    def change(config: Node) -> None:
        config.train.optimizer.lr = 2e-3
        config.train.max_epochs = 3

    keys = list(configured(read_config("own"), change))  # type: ignore[arg-type]
    train = load_config("finetune", ["train.init_from=own", *keys]).train
    assert (train.learning_rate, train.beta1, train.beta2, train.batch_size) == (2e-3, 0.8, 0.9, 2)
    assert train.max_epochs == 3
    assert "data.sequence_length=64" in keys
    recipe["train"]["lr_scheduler"] = {"type": "StepLR", "step_size": 2}  # type: ignore[index]
    (folder / "configuration.json").write_text(json.dumps(recipe))
    with pytest.raises(
        ValueError, match=r"train\.lr_scheduler\.type='StepLR' isn't known here: .*train\.schedule=cosine"
    ):
        list(configured(read_config("own"), lambda config: config))


@pytest.mark.parametrize("warmup", [1, 2, 7, 100, 200, 12345])
def test_noam_is_known_by_its_values(warmup: int) -> None:
    assert noam_warmup(noam(warmup)) == warmup
    config = load_config("finetune", ["train.init_from=a", "train.schedule=noam", f"train.warmup_steps={warmup}"]).train
    assert learning_rate_factor(3, config, 10) == pytest.approx(noam(warmup)(3))
    for other in (
        lambda step: 2 * noam(warmup)(step),
        lambda step: min(1.0, (step + 1) / warmup),
        lambda step: max(noam(warmup)(step), 1e-3),
        lambda step: noam(warmup)(step - 1) if step else 0.0,
    ):
        assert noam_warmup(other) is None
