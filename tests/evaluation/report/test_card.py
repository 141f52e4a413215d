"""A card says what stands in the report and in run.yaml, and survives a conversion."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from modules.config.loader import load_config
from modules.system.checksums import sha256_of
from modules.tracking.models.exported_model import log_model
from modules.tracking.stage_run import connect
from pipelines.convert import convert
from pipelines.evaluate import evaluate
from pipelines.prepare import prepare
from pipelines.pretrain import pretrain
from tests.helpers.models import ROOT

SMALL = [
    "model=tiny", "model.hidden_size=16", "model.num_hidden_layers=1", "data.max_rows=40", "train.max_steps=4",
    "train.validate_every_n_steps=2", "train.sample_prompts=[]", "trainer.accelerator=cpu",
    "trainer.progress_bar=false", "tracking.log_system_metrics=false",
]  # fmt: skip


def test_a_card_tells_how_the_model_was_made_and_what_it_scores(store: Path) -> None:
    rows = ROOT / "data" / "poems-300.jsonl.gz"
    prepare(load_config("prepare", [f"source={rows}", "output_dir=own"]))
    made = pretrain(load_config("pretrain", [*SMALL, "data.path=own"]))
    convert(load_config("convert", [f"source={made.model}", "target=half", "dtype=float16"]))
    (store / "test.txt").write_text("白日依山尽，黄河入海流。\n床前明月光，疑是地上霜。\n", encoding="utf-8")
    arguments = ["model=half", f"data.path={rows}", "data.test_path=test.txt", "prompts=[]", "ngram_floor=false"]
    found = evaluate(load_config("evaluate", [*arguments, "card=true", "tracking.log_system_metrics=false"]))
    card = (store / "half" / "README.md").read_text(encoding="utf-8")
    value = found.evaluations["model"]["perplexity_per_char"].value
    for told in (
        f"{value:.4g} [",
        made.run_id,
        "learning_rate=",
        "| train | ",
        "# pretrain ",
        'model="half")("白日依山尽，")',  # how the first test row begins
        "Perplexity per character (lower is better)",
        "By perplexity per character, the model has ",
        "| 4 |",
        "finished",
        f"source: {rows}",
        "evaluated with code",
    ):
        assert told in card, told
    assert mlflow.artifacts.load_text(f"runs:/{found.run_id}/README.md") == card
    assert evaluate(load_config("evaluate", [*arguments, "tracking.log_system_metrics=false"])).run_id not in card
    assert not list((store / "half").glob(".*"))


def test_the_card_of_a_registered_model_goes_to_the_run_and_leaves_the_registry_alone(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = pretrain(load_config("pretrain", [*SMALL, f"data.path={ROOT / 'data' / 'poems-300.jsonl.gz'}"]))
    assert made.model
    (made.model / "README.md").write_text("by hand", encoding="utf-8")
    connect()
    with mlflow.start_run():
        uri = log_model(made.model)
    mlflow.register_model(uri, "own")
    folder = Path(mlflow.artifacts.download_artifacts("models:/own/1"))
    before = {path: sha256_of(path) for path in folder.rglob("*") if path.is_file()}
    (store / "test.txt").write_text("白日依山尽，黄河入海流。\n", encoding="utf-8")
    arguments = ["data.path=null", "data.test_path=test.txt", "prompts=[]", "tracking.log_system_metrics=false"]
    found = evaluate(load_config("evaluate", ["model=models:/own/1", "card=true", *arguments]))
    assert {path: sha256_of(path) for path in folder.rglob("*") if path.is_file()} == before
    card: str = mlflow.artifacts.load_text(f"runs:/{found.run_id}/README.md")
    assert "# own version 1\n" in card
    assert 'model="models:/own/1"' in card
    assert made.run_id in card
    assert "README.md" in next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("card"))


def test_a_mixtures_sources_are_told_of_one_by_one() -> None:
    from modules.evaluation.report.card import model_card
    from modules.evaluation.report.contents import Report

    mix = [{"path": "verse", "weight": 0.7, "max_rows": None}, {"path": "prose", "weight": 0.2, "name": "modern"}]
    mix += [{"path": "my.csv", "weight": 0.1}]
    origin = {"config": {"data": {"mix": mix, "over_long": "split"}}}
    sources = {"verse": {"source": "full"}, "prose": {"source": "a clone", "licence": "MIT"}, "my.csv": {}}
    lines = model_card("m", Report("t"), origin, 10**6, sources).splitlines()
    for told in (
        "- verse: source: full.",
        "- prose: source: a clone; licence: MIT.",
        "- my.csv: no manifest says.",
        "    data.mix: path=verse, weight=0.7",
        "    data.mix: path=prose, weight=0.2, name=modern",
        "    data: over_long=split",
    ):
        assert told in lines, told


def test_a_card_of_a_model_whose_making_is_unknown(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from modules.evaluation.report.card import model_card
    from modules.evaluation.report.contents import Report

    assert model_card("m", Report("t"), {}, 1_400_000).count("##") == 0  # no scores, learning, data or settings


def test_a_card_speaks_of_its_own_task_and_reads_no_text_as_markdown() -> None:
    from modules.evaluation.report.card import model_card
    from modules.evaluation.report.contents import Column, Example, Report
    from modules.evaluation.statistics import mean

    texts = [Example("一段很长的文章" * 9, 0.2, text="问\n# 题", reference="题"), Example('短"文', 0.4, text="答")]
    columns = [Column("model", [mean("distinct_2", [0.1, 0.2]), mean("rougeL", [0.2, 0.4])])]
    card = model_card("m", Report("t", columns=columns, measure="rougeL", examples=texts, model="finetune"), {}, 10**6)
    assert card.index("By ROUGE-L, the model has 0.3000") < card.index("## Scores")
    assert card.index("| ROUGE-L (higher is better) |") < card.index("| Distinct 2 ")
    assert r'model="m")("短\"文")["text"]' in card
    assert "白日依山尽" not in card
    assert "\n# 题" not in card
    assert card.count("\n# ") == 1
