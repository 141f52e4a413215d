"""Choosing the best checkpoint by what the model writes: train.select_by."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml

from modules.config.evaluation import MEASURES, TEXT_METRICS
from modules.config.loader import ConfigError, load_config
from modules.config.training import TrainingConfig
from modules.evaluation.metrics import METRICS, bleu, verse
from modules.evaluation.task_rows import TaskRow
from modules.model.decoder import Decoder
from modules.system.signals import Stopped
from modules.training.callbacks import Selection, best_first, checkpoints_in
from modules.training.checkpoints.resume import newest_sound
from modules.training.checkpoints.run_manifest import RunManifest, manifest_differences
from modules.training.checkpoints.saving import read_progress
from modules.training.fit import fit
from modules.training.setup import run_manifest_of
from pipelines.evaluate import evaluate
from pipelines.train import set_up_training, train
from tests.checkpoint.test_training_checkpoint import QUICK
from tests.helpers.layouts import Recorder, train_layout
from tests.helpers.models import make_config, make_decoder

Score = Callable[[Decoder, Callable[[], None]], dict[str, float]]


@pytest.fixture(scope="module")
def pairs() -> datasets.DatasetDict:
    def split(first: int, count: int) -> datasets.Dataset:
        sources = [chr(0x4E00 + n) * 2 + chr(0x4E00 + n % 7) for n in range(first, first + count)]
        return datasets.Dataset.from_dict({"src_txt": sources, "tgt_txt": [source[:0:-1] for source in sources]})

    return datasets.DatasetDict({"train": split(0, 48), "validation": split(20, 9)})


def config_of(*arguments: str) -> TrainingConfig:
    config = load_config("pretrain", [
        "model=tiny", *QUICK, "trainer.precision=32-true", "tokenizer.min_frequency=1", "generation.max_new_tokens=5",
        "train.max_steps=6", "train.validate_every_n_steps=2", "train.learning_rate=0.02", "train.save_top_k=-1",
        *arguments,
    ])  # fmt: skip
    assert isinstance(config, TrainingConfig)
    return config


def run(
    rows: Any, folder: Path, *arguments: str, checkpoint: Path | None = None, score: Score | None = None
) -> tuple[int, dict[str, float], Recorder]:
    """The step of the best checkpoint, its metrics, and what was logged; `score` stands in for the real one."""
    config, recorder = config_of(*arguments), Recorder()
    training = set_up_training(config, rows)
    if score:
        training = dataclasses.replace(training, selection=dataclasses.replace(training.selection, score=score))
    best, metrics = fit("pretrain", config, training, folder, recorder, checkpoint=checkpoint)
    return read_progress(best)["global_step"], metrics, recorder


def in_turn(metric: str, *values: float) -> Score:
    """Scores that come one after another."""
    left: Iterator[float] = iter(values)
    return lambda decoder, between: {metric: next(left)}


def logged(recorder: Recorder, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in recorder.rows if name in row}


def test_every_measure_of_texts_but_the_length_has_its_name_in_the_configuration() -> None:
    rows = [TaskRow("白日依山尽，", ["黄河入海流。"], ["黄河"])]
    for name in TEXT_METRICS:
        others: dict[str, Any] = {"bleu": bleu, "verse": lambda texts, rows: verse(texts, rows, None)}
        found = (others | METRICS)[name](["黄河入海流。"], rows)
        names = [metric.name.replace(" ", "_") for metric in found]
        assert sorted(names) == sorted(MEASURES.get(name, ("length_ratio",)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("rougeLL", r"train\.select_by=rougeLL: nothing of that name can be chosen by; did you mean rougeL\?"),
        ("rouge", r"did you mean rougeL or rouge1 or rouge2\?"),
        ("slots", r"did you mean slot_error_rate\?"),
        ("length_ratio", r"there is val/loss, rougeL, "),
        ("loss", r"did you mean val/loss\?"),
    ],
)
def test_a_name_that_is_no_measure_is_refused_with_the_ones_that_are(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(f"train.select_by={given}")


def test_the_name_may_be_as_it_is_logged() -> None:
    assert [config_of(f"train.select_by={name}").train.text_metric for name in ("val/bleu", "test/bleu", "bleu")] == [
        "bleu"
    ] * 3


def test_task_keys_without_effect_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.rows has no effect with train\.select_by=val/loss"):
        config_of("task.rows=5")


def test_rows_without_what_the_measure_needs_are_refused(pairs: datasets.DatasetDict, rows: datasets.Dataset) -> None:
    said = r"train\.select_by=rougeL needs validation rows with tgt_txt, and rows in memory .* has src_txt: .*tgt_txt"
    with pytest.raises(
        ValueError, match=said + r".* allow train\.select_by=val/loss or repetition, distinct_2, lines_"
    ):
        set_up_training(config_of("train.select_by=rougeL"), rows)
    with pytest.raises(ValueError, match=r"needs validation rows with slots, and .* has src_txt, tgt_txt: .* rougeL, "):
        set_up_training(config_of("train.select_by=slot_error_rate"), pairs)


def test_the_plan_says_it(pairs: datasets.DatasetDict) -> None:
    plan = set_up_training(config_of("train.select_by=repetition", "task.rows=4"), pairs).plan.describe()
    said = "by val/repetition (the lowest) of 4 of 9 validation rows, each answered greedily in up to 5 tokens"
    assert plan["best checkpoint"] == said
    assert set_up_training(config_of(), pairs).plan.describe()["best checkpoint"] == "by val/loss"


def test_a_tasks_file_says_how_it_is_scored(pairs: datasets.DatasetDict, tmp_path: Path) -> None:
    """Keys that are evaluate's alone are no fault; one that is nobody's is."""
    task = tmp_path / "mine.yaml"
    task.write_text("prompts: []\nngram_floor: false\ngeneration.max_new_tokens: 7\ntask: {metrics: [bleu], rows: 3}\n")
    config = load_config("finetune", ["train.init_from=FOLDER", f"task={task}", "train.select_by=exact_match"])
    assert (config.generation.max_new_tokens, config.task.rows) == (7, 3)
    whole_way = load_config("main", [f"finetune.task={task}", "finetune.train.select_by=bleu"])
    assert whole_way.finetune.task.metrics == ["bleu"]
    training = set_up_training(config_of(f"task={task}", "train.select_by=exact_match"), pairs)
    assert training.selection.texts.startswith("3 of 9 validation rows")
    assert training.selection.score
    decoder = make_decoder(make_config(training.tokenizer.vocab_size))
    assert {"val/exact_match", "val/bleu"} < training.selection.score(decoder, lambda: None).keys()
    task.write_text("promts: []\n")
    with pytest.raises(ConfigError, match=r"promts \(mine\.yaml\): no such key"):
        config_of(f"task={task}")


def test_columns_that_a_metric_looks_for_are_read_for_it_alone(tmp_path: Path) -> None:
    rows = [{"src_txt": f"问{n}", "tgt_txt": f"甲{n}乙", "slots": [f"甲{n}"], "other": n} for n in range(30)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    plain = set_up_training(config_of(f"data.path={path}", "data.validation_fraction=0.3"), None)
    scored = set_up_training(
        config_of(f"data.path={path}", "data.validation_fraction=0.3", "train.select_by=slot_error_rate"), None
    )
    assert not scored.selection.higher_is_better
    for training in (plain, scored):
        assert training.splits["train"].column_names == ["src_txt", "tgt_txt"]
        assert training.tokenizer.fingerprint == plain.tokenizer.fingerprint


def test_it_is_what_evaluate_scores(pairs: datasets.DatasetDict, store: Path) -> None:
    """The same rows, prompts, texts and metrics; and it is logged, chosen by, and said in run.yaml."""
    pairs["train"].to_json("train.jsonl", force_ascii=False)
    pairs["validation"].to_json("validation.jsonl", force_ascii=False)
    keys = ["data.path=train.jsonl", "data.validation_path=validation.jsonl", "output_dir=out"]
    result = train("pretrain", config_of(*keys, "train.select_by=rougeL", "task.metrics=[bleu]", "task.rows=6"))
    assert result.metrics
    asked = ["data.path=null", "data.test_path=validation.jsonl", "task.metrics=[rouge,bleu]", "task.rows=6"]
    asked += ["generation.temperature=0", "generation.max_new_tokens=5", "prompts=[]", "ngram_floor=false"]
    found = evaluate(load_config("evaluate", ["model=out/model", *asked])).evaluations["model"]
    for name in ("rougeL", "rouge1", "bleu", "end_of_text_rate"):
        assert result.metrics[f"val/{name}"] == found[name].value
    assert found["rougeL"].value > 0
    facts = yaml.safe_load(Path("out/model/run.yaml").read_text(encoding="utf-8"))
    said = r"val/rougeL, highest at step \d+ \(6 of 9 validation rows, each answered greedily in up to 5 tokens; .* s a"
    assert re.match(said, facts["chosen_by"])
    assert facts["metrics"]["val/rougeL"] == result.metrics["val/rougeL"]


@pytest.mark.parametrize(
    ("measure", "values", "best"),
    [("rougeL", (0.1, 0.4, 0.2), 4), ("repetition", (0.1, 0.4, 0.2), 2), ("rougeL", (math.nan, 0.1, math.nan), 4)],
)
def test_the_best_checkpoint_is_that_of_the_measure(
    pairs: datasets.DatasetDict, tmp_path: Path, measure: str, values: tuple[float, ...], best: int
) -> None:
    score = in_turn(f"val/{measure}", *values)
    step, metrics, recorder = run(
        pairs, tmp_path, f"train.select_by={measure}", "train.save_top_k=1", "train.early_stopping_patience=3",
        score=score,
    )  # fmt: skip
    assert step == best
    assert list(checkpoints_in(tmp_path / "checkpoints")) == sorted({best, 6})
    np.testing.assert_equal(list(logged(recorder, f"val/{measure}").values()), values)
    assert metrics[f"val/{measure}"] == values[best // 2 - 1]


def test_of_equal_ones_the_lower_loss_decides_then_the_later_one() -> None:
    """An exact match is 0 for long."""
    losses = {1: 3.0, 2: 2.0, 3: 2.0, 4: math.nan, 5: 9.0}
    validations = {step: {"val/loss": loss, "val/exact_match": 0.0} for step, loss in losses.items()}
    validations[5]["val/exact_match"] = 0.1
    paths = dict.fromkeys(losses, Path())
    assert best_first(paths, validations, Selection("val/exact_match", True)) == [5, 3, 2, 1, 4]
    assert best_first(paths, validations, Selection("val/exact_match", False)) == [3, 2, 1, 4, 5]


@pytest.mark.parametrize(
    ("measure", "values", "last"),
    [("bleu", (2.0, 1.0, 3.0), 4), ("bleu", (1.0, 2.0, 3.0), 6), ("repetition", (0.1, 0.2, 0.0), 4)],
)
def test_early_stopping_goes_by_it(
    pairs: datasets.DatasetDict, tmp_path: Path, measure: str, values: tuple[float, ...], last: int
) -> None:
    keys = f"train.select_by={measure}", "train.early_stopping_patience=1"
    _, _, recorder = run(pairs, tmp_path, *keys, score=in_turn(f"val/{measure}", *values))
    assert max(logged(recorder, "train/loss")) == last


def test_training_is_the_same_with_and_without_it(pairs: datasets.DatasetDict, tmp_path: Path) -> None:
    """Dropout draws what it would have drawn, and weights come out alike to the last bit."""
    steps, curves = {}, {}
    for name in ("val/loss", "rougeL"):
        run(pairs, tmp_path / name[-1], f"train.select_by={name}")
        last = tmp_path / name[-1] / "checkpoints" / "step=6.ckpt"
        steps[name] = {path.name: path.read_bytes() for path in last.glob("__*.distcp")}
        curves[name] = read_progress(last)["validations"]
    assert steps["rougeL"] == steps["val/loss"]
    for step, metrics in curves["val/loss"].items():
        assert curves["rougeL"][step].items() >= metrics.items()


def test_a_run_stopped_while_it_scores_goes_on_to_the_last_bit(pairs: datasets.DatasetDict, tmp_path: Path) -> None:
    keys = "train.select_by=rougeL", "train.early_stopping_patience=9"
    best, metrics, whole = run(pairs, tmp_path / "whole", *keys)
    real = set_up_training(config_of(*keys), pairs).selection.score
    assert real
    times = iter(range(9))

    def stopped_second_time(decoder: Decoder, between: Callable[[], None]) -> dict[str, float]:
        if next(times) == 1:
            signal.raise_signal(signal.SIGTERM)
        return real(decoder, between)

    with pytest.raises(Stopped):
        run(pairs, tmp_path / "cut", *keys, score=stopped_second_time)
    newest = newest_sound(tmp_path / "cut" / "checkpoints")
    assert newest
    assert read_progress(newest)["global_step"] == 4
    assert list(read_progress(newest)["validations"]) == [2]
    found, again, rest = run(pairs, tmp_path / "cut", *keys, checkpoint=newest)
    assert (found, again) == (best, metrics)
    assert logged(rest, "val/rougeL").items() <= logged(whole, "val/rougeL").items()
    assert list(logged(rest, "val/rougeL")) == [4, 6]
    for part in (tmp_path / "whole" / "checkpoints" / "step=6.ckpt").glob("__*.distcp"):
        assert part.read_bytes() == (tmp_path / "cut" / "checkpoints" / "step=6.ckpt" / part.name).read_bytes()


def test_weights_that_are_no_numbers_are_not_chosen(pairs: datasets.DatasetDict, tmp_path: Path) -> None:
    real = set_up_training(config_of("train.select_by=rougeL"), pairs).selection.score
    assert real

    def broken_first(decoder: Decoder, between: Callable[[], None]) -> dict[str, float]:
        weight = decoder.word_embeddings.weight
        kept = weight.detach().clone()
        if first.pop():
            weight.data.fill_(math.nan)
        try:
            return real(decoder, between)
        finally:
            weight.data.copy_(kept)

    first = [False, False, True]
    step, _, recorder = run(pairs, tmp_path, "train.select_by=rougeL", score=broken_first)
    assert math.isnan(logged(recorder, "val/rougeL")[2])
    assert step > 2
    assert torch.isfinite(torch.tensor(list(logged(recorder, "train/loss").values()))).all()


def test_what_a_run_that_goes_on_must_have_kept() -> None:
    def manifest(*arguments: str) -> RunManifest:
        return RunManifest("pretrain", "id", dataclasses.asdict(config_of(*arguments)), {}, "t", None)

    scored, length = "train.select_by=rougeL", "generation.max_new_tokens=9"
    assert set(manifest_differences(manifest(scored), manifest(scored, length))) == {"generation.max_new_tokens"}
    for other in ("presence_penalty=1", "frequency_penalty=1", "logit_bias.5=-100"):  # greedy texts change too
        (found,) = manifest_differences(manifest(scored), manifest(scored, f"generation.{other}"))
        assert found.startswith(f"generation.{other[:9]}")
    assert set(manifest_differences(manifest(), manifest(scored))) == {"train.select_by"}
    assert not manifest_differences(manifest(), manifest(length))
    older = manifest()
    del older.config["task"], older.config["train"]["select_by"]
    assert not manifest_differences(older, manifest())


def test_rows_with_other_references_are_others_where_they_are_scored_by_them(tmp_path: Path) -> None:
    def manifest(reference: str, *arguments: str) -> RunManifest:
        rows = [{"src_txt": f"问{n}", "tgt_txt": f"甲{n}乙", "references": [f"{reference}{n}"]} for n in range(30)]
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        config = config_of(f"data.path={path}", "data.validation_fraction=0.3", *arguments)
        return run_manifest_of("pretrain", "id", config, set_up_training(config, None), None)

    by_texts = "train.select_by=rougeL"
    found = manifest_differences(manifest("甲", by_texts), manifest("丙", by_texts))
    assert found == {"data": "the references (or slots, choices) of the rows for validation are others"}
    assert not manifest_differences(manifest("甲", by_texts), manifest("甲", by_texts))
    assert not manifest_differences(manifest("甲"), manifest("丙"))
    older = dataclasses.replace(manifest("甲", by_texts), scored_rows=None)
    assert not manifest_differences(older, manifest("丙", by_texts))


def test_a_change_of_measure_that_is_allowed_chooses_among_what_it_knows(
    pairs: datasets.DatasetDict, tmp_path: Path
) -> None:
    run(pairs, tmp_path, "train.max_steps=4")
    newest = newest_sound(tmp_path / "checkpoints")
    step, _, _ = run(pairs, tmp_path, "train.select_by=bleu", checkpoint=newest, score=in_turn("val/bleu", 0.0, 0.0))
    assert step == 6


def test_few_shot_prompts_are_scored_as_evaluate_would(pairs: datasets.DatasetDict, tmp_path: Path) -> None:
    keys = "train.select_by=rougeL", "task.examples=1", "task.separator=。", "train.max_steps=2"
    step, metrics, _ = run(pairs, tmp_path, *keys)
    assert step == 2
    assert 0 <= metrics["val/rougeL"] <= 1


def test_several_ranks_score_as_one(pairs: datasets.DatasetDict, tmp_path: Path) -> None:
    """Where weights are spread, and matrices cut, all of them have to take part."""
    for name, split in pairs.items():
        split.to_json(tmp_path / f"{name}.jsonl", force_ascii=False)
    keys = ["model=tiny", *QUICK, "model.hidden_dropout_prob=0", "tokenizer.min_frequency=1", "train.max_steps=4"]
    keys += [f"data.path={tmp_path / 'train.jsonl'}", f"data.validation_path={tmp_path / 'validation.jsonl'}"]
    keys += ["train.select_by=rougeL", "train.validate_every_n_steps=2", "train.learning_rate=0.02"]
    keys += ["train.early_stopping_patience=1", "generation.max_new_tokens=4", "trainer.precision=32-true"]
    spread = ["trainer.devices=4", "trainer.strategy=fsdp", "trainer.tensor_parallel=2"]
    found = []
    for processes, more in ((1, []), (2, ["trainer.devices=2"]), (4, spread)):
        folder = tmp_path / str(processes)
        folder.mkdir()
        rows = train_layout(folder, processes, [*keys, *more])["rows"]
        found.append([(row["step"], row["val/rougeL"]) for row in rows if "val/rougeL" in row])
    assert found[0] == found[1] == found[2]
    assert max(value for _, value in found[0]) > 0
