"""Training on several sources, end to end: steps, validation by source, what is recorded, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import mlflow
import numpy as np
import pytest

from modules.checkpoint.loading import open_tokenizer
from modules.config.loader import ConfigError, load_config
from modules.config.mixing.mixture_sources import SourceConfig
from modules.data.quarantine import DataError
from modules.evaluation.choosing.scored_rows import choose_rows, load_task_rows, scored_tokenizer
from modules.evaluation.sweeps.early_end import WEIGHTS, differences, rows_of
from modules.evaluation.task_rows import copies_in_training
from modules.inference.asked_task import asking
from modules.tokenizer.tokenizer import Tokenizer
from modules.tracking.reuse.stage_key import stage_key
from modules.training.checkpoints.run_manifest import CHECKPOINTS
from modules.training.setup import choose_tokenizers, saved_tokenizer
from modules.training.validation.sums import Validation, metrics_of_all
from pipelines.train import TrainResult, train
from tests.checkpoint.test_training_checkpoint import QUICK
from tests.data.mixing.test_mixed_steps import SIZES, mixture


@pytest.fixture
def sources(tmp_path: Path) -> str:
    """data.mix of pairs in columns of their own, and of plain text that has the first pair's answer among it."""
    random = np.random.default_rng(0)
    lines = ["".join(random.choice(list("山水春风花月云雨"), n)) for n in random.integers(4, 20, 80)]
    pairs = [{"问": line[:3], "答": line[3:]} for line in lines[:40]]
    plain = [{"src_txt": line} for line in [*lines[40:], lines[0][3:]]]
    for name, rows in (("pairs", pairs), ("plain", plain)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held.jsonl").write_text(json.dumps({"问": "x", "答": lines[0][3:]}) + "\n")
    return (
        f"[{{path: {tmp_path}/pairs.jsonl, weight: 3, columns: {{问: src_txt, 答: tgt_txt}}, "
        f"prompt_template: '{{src_txt}}：', validation_path: {tmp_path}/held.jsonl}}, "
        f"{{path: {tmp_path}/plain.jsonl, weight: 1}}]"
    )


def run(folder: Path, sources: str, *arguments: str, stage: str = "pretrain") -> TrainResult:
    model = ["model=tiny", "tokenizer.min_frequency=1"] if stage == "pretrain" else []
    quick = [key for key in QUICK if stage == "pretrain" or not key.startswith("model.")]
    keys = [*model, *quick, "trainer.precision=32-true", "train.batch_size=4", f"data.mix={sources}"]
    return train(stage, load_config(stage, [*keys, f"output_dir={folder}", *arguments]))


def history(result: TrainResult, name: str) -> dict[int, float]:
    return {m.step: m.value for m in mlflow.MlflowClient().get_metric_history(result.run_id, name)}


TEMPLATES = {"plain": None, "a": "{src_txt}甲", "b": "{src_txt}乙"}

STEPS = ("train.max_steps=24", "train.save_every_n_steps=7", "train.save_top_k=-1", "train.validate_every_n_steps=12")


def test_a_mixture_goes_on_bit_for_bit(seen: list[list[int]], sources: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", sources, *STEPS)
    steps = list(seen)
    seen.clear()
    at = tmp_path / "whole" / CHECKPOINTS / "step=7.ckpt"
    rest = run(tmp_path / "rest", sources, *STEPS, f"train.resume_from={at}")
    assert seen == steps[7:]
    later = {step: value for step, value in history(whole, "train/loss").items() if step > 7}
    assert history(rest, "train/loss") == later
    assert rest.metrics == whole.metrics
    assert whole.plan.sources[0].weight == 0.75
    assert whole.plan.sources[0].passes(whole.plan.epochs) > whole.plan.sources[1].passes(whole.plan.epochs)


def test_what_is_said_and_kept_of_each_source(seen: list[list[int]], sources: str, tmp_path: Path) -> None:
    first = run(tmp_path / "first", sources, "train.max_steps=3")
    assert first.model
    result = run(tmp_path / "tuned", sources, "train.max_steps=4", f"train.init_from={first.model}", stage="finetune")
    before, after = (history(result, f"val/{name}/perplexity_per_char") for name in ("pairs", "plain"))
    assert set(before) == set(after) == {0, 4}  # before the first step, so that what is forgotten can be told
    losses = [history(result, f"val/{name}/loss")[4] for name in ("pairs", "plain")]
    assert history(result, "val/loss")[4] == pytest.approx(0.75 * losses[0] + 0.25 * losses[1])
    described = result.plan.describe()
    assert "weight 0.75" in described["  pairs"]
    assert described["  pairs"].endswith(r"prompt '{src_txt}：', asked for by task.name=pairs")
    assert "also among the training rows: 1 (plain 1)" in described["validation/pairs rows"]
    inputs = mlflow.get_run(result.run_id).inputs.dataset_inputs
    contexts = {each.tags[0].value for each in inputs}
    assert contexts == {"train/pairs", "train/plain", "validation/pairs", "validation/plain"}
    assert mlflow.get_run(result.run_id).data.metrics["rows/train/pairs"] == 40
    require_scored_by_source(result, tmp_path)


def require_scored_by_source(result: TrainResult, tmp_path: Path) -> None:
    """Scoring names one source, and asks its rows as they were trained; copies are looked for in all."""
    assert result.model
    taught = open_tokenizer(result.model)
    assert taught.task_templates == {"pairs": "{src_txt}："}
    assert taught.prompt_template is None  # it has learnt to go on with plain text, too
    asked = asking(taught, load_config("generate", ["task.name=pairs"]).task)
    assert asked.prompt_template == "{src_txt}："
    config = load_config("evaluate", [f"model={result.model}"])
    with pytest.raises(
        DataError, match=r"trained on a mixture, and one source is scored at a time: give data\.path=.*"
    ):
        choose_rows(config, config.model, result.model)
    config = load_config("evaluate", [f"model={result.model}", f"data.path={tmp_path}/pairs.jsonl"])
    config, chosen = choose_rows(config, config.model, result.model)
    assert chosen.trained
    assert config.data.columns == {"问": "src_txt", "答": "tgt_txt"}
    assert scored_tokenizer(result.model, config.data).prompt_template == "{src_txt}："
    rows = load_task_rows(config, chosen).test
    assert rows["src_txt"] == ["x"]  # the validation rows of that source
    copies = copies_in_training(rows, result.model, None)
    assert copies is not None
    assert copies.tolist() == [True]  # its answer is a text of the other source
    plain = load_config("evaluate", [f"model={result.model}", f"data.path={tmp_path}/plain.jsonl"]).data
    assert scored_tokenizer(result.model, plain).prompt_template is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[{path: a}, {path: b, weight: 1}]", "data.mix: a has no weight, and others have"),
        ("[{path: a, weight: 0}]", r"data.mix: source 1 \(a\): weight \(0\) must be a positive number"),
        ("[{path: a, weight: -2}]", r"weight \(-2\) must be a positive number"),
        ("[{path: x/a}, {path: y/a.csv}]", "data.mix: 2 sources are called a: tell them apart with name: NAME"),
        ("[{path: a, wieght: 1}]", "source 1: no such key wieght; did you mean weight?"),
        ("[{path:a,wieght:1}]", "source 1: no such key wieght; did you mean weight?"),
        ("[{data:couplets,wieght:1}]", "source 1: no such key wieght; did you mean weight?"),
        ("[{path: a, wieght: }]", "source 1: no such key wieght; did you mean weight?"),
        ("[{weight: 1}]", "source 1 has no path, nor data: NAME"),
        ("[{data: coupletts}]", "source 1: data: coupletts: no such data set; must be one of .*did you mean couplets?"),
        ("[{path: couplets}]", r"data.mix.0.path=couplets: there is no such path; {data: couplets} is the data set of"),
        ("[{path: a, weight: much}]", r"source 1: weight \(much\) must be a number"),
        ("a.csv", "must be a list of sources, e.g."),
        ("[a.csv, b.csv]", "must be a list of sources, e.g."),
        ("[{path: loss}]", "a source can't be called loss, as a metric is"),
        ("[{path: '[a.csv,b.csv]'}]", "can't name metrics; add name: NAME"),
    ],
)
def test_what_can_not_be_mixed(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("pretrain", [f"data.mix={given}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.path=a"], "data.path=a and data.mix exclude each other"),
        (["data.test_path=a"], "data.test_path=a and data.mix exclude each other"),
        (["data.mix_temperature=2"], "data.mix_temperature=2 has no effect where sources have weights"),
        (["train.select_by=val/c/loss"], "there is no such source; data.mix has val/a/loss, val/b/loss"),
        (["train.select_by=rougeL"], "train.select_by=rougeL and data.mix exclude each other"),
    ],
)
def test_what_can_not_stand_beside_a_mixture(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("pretrain", ["data.mix=[{path: a, weight: 1}, {path: b, weight: 1}]", *arguments])


def test_a_mixture_takes_the_place_of_a_stage_s_own_rows() -> None:
    written = [
        "[{path:a,weight:0.7,prompt_template:'{src_txt}\\n'},{path:b,weight:0.3,columns:{text1:src_txt}}]",
        '[{path: a, weight: 0.7, prompt_template: "{src_txt}\\n"}, {path: b, weight: 0.3, columns: {text1: src_txt}}]',
    ]
    compact, spaced = (
        load_config("finetune", ["train.init_from=models/poems", f"data.mix={one}"]).data for one in written
    )
    assert compact == spaced
    assert compact.path is None
    assert compact.mix[0].prompt_template == "{src_txt}\n"
    assert compact.mix[1].columns == {"text1": "src_txt"}
    task = load_config("finetune", ["train.init_from=models/poems", "task=couplets", "data.mix=[{path: a}]"]).data
    assert task.path is None
    assert task.prompt_template is None  # couplets' prompt, which the source needn't have
    under_mlflow = load_config("finetune", ["data=quatrains", "train.init_from=models/poems", "data.mix=[{path: a}]"])
    assert under_mlflow.data.path is None


def test_a_source_can_be_a_data_set_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("path: rows.csv\ncolumns: {text1: src_txt}\n")
    for given in (
        f"[{{data: couplets, weight: .2}}, {{data: {tmp_path}/mine.yaml, weight: .5, name: other}}]",
        f"[{{data:couplets,weight:.2}},{{data:{tmp_path}/mine.yaml,weight:.5,name:other}}]",
    ):
        named, by_file = load_config("pretrain", [f"data.mix={given}"]).data.mix
        assert named == SourceConfig("prepared/sample/couplets", 0.2, "couplets", prompt_template="{src_txt}\n")
        assert by_file == SourceConfig("rows.csv", 0.5, "other", {"text1": "src_txt"})
    own = load_config("pretrain", ["data.mix=[{data: couplets, name: lines, prompt_template: '{src_txt}，'}]"]).data
    assert own.mix == [SourceConfig("prepared/sample/couplets", None, "lines", prompt_template="{src_txt}，")]
    (tmp_path / "mine.yaml").write_text("path: rows.csv\nsequence_length: 9\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml says sequence_length, which is one for all sources"):
        load_config("pretrain", [f"data.mix=[{{data: {tmp_path}/mine.yaml}}]"])


def test_the_template_that_a_mixture_is_saved_with(tokenizer: Tokenizer) -> None:
    """None where plain text is learnt too, unless data.prompt_template says one."""
    made = {name: tokenizer.with_prompt_template(template) for name, template in TEMPLATES.items()}
    mix = "data.mix=[{path: plain}, {path: a}, {path: b}]"
    for names, given, expected in (
        (("plain", "a", "b"), [], None),
        (("plain", "a", "b"), ["data.prompt_template={src_txt}丙"], "{src_txt}丙"),
        (("a", "b"), [], "{src_txt}甲"),
        (("b", "a"), ["data.prompt_template={src_txt}丙"], "{src_txt}丙"),
        (("plain",), ["data.prompt_template={src_txt}丙"], None),
    ):
        saved = saved_tokenizer(load_config("pretrain", [mix, *given]), {name: made[name] for name in names}, None)
        assert saved.prompt_template == expected
        assert saved.task_templates == {name: TEMPLATES[name] for name in names if name != "plain"}


def test_a_source_is_asked_as_the_model_was_taught_its_task(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.with_prompt_template(None, {"a": "{src_txt}甲"}).save(tmp_path)
    rows = datasets.Dataset.from_dict({"src_txt": ["山"], "tgt_txt": ["水"]})
    config = load_config("finetune", ["train.init_from=models/poems", "data.mix=[{path: a}, {path: b}]"])
    found = choose_tokenizers(config, tmp_path, {"train/a": rows, "train/b": rows})
    assert found["a"].prompt_template == "{src_txt}甲"
    assert found["b"].prompt_template != "{src_txt}甲"


def test_what_a_source_holds_decides_about_reuse(sources: str, tmp_path: Path) -> None:
    def key(mix: str = sources) -> str:
        found, why = stage_key(
            "finetune", load_config("finetune", ["train.init_from=models/poems", f"data.mix={mix}"]), {}
        )
        assert found, why
        return found

    first, plain = key(), tmp_path / "plain.jsonl"
    plain.rename(tmp_path / "moved.jsonl")
    moved = sources.replace("plain.jsonl", "moved.jsonl, name: plain")
    assert key(moved) != key(moved.replace("weight: 3", "weight: 2"))
    (tmp_path / "moved.jsonl").rename(plain)
    assert key() == first
    plain.write_text(plain.read_text() + '{"src_txt": "云"}\n')
    assert key() != first


def test_trials_with_other_weights_are_not_compared_by_the_whole(tokenizer: Tokenizer) -> None:
    sizes = [mixture(tokenizer, *weights, sizes={name: SIZES[name] for name in "ab"}) for weights in ((1, 1), (1, 3))]
    digests = {"train/a": "1", "train/b": "2", "validation/a": "3", "validation/b": "4"}
    found = {}
    for metric in ("val/loss", "val/a/loss"):
        config = load_config(
            "sweep", ["stage=finetune", "trials=2", f"metric={metric}", "space.data.mix_temperature=1,2"]
        )
        found[metric] = [rows_of(config, digests, data) for data in sizes]
    assert differences(*found["val/loss"]) == [WEIGHTS]
    assert not differences(*found["val/a/loss"])
    assert found["val/loss"][0]["validation rows"] == "3,4"


@pytest.mark.parametrize("stage", ["evaluate", "register"])
def test_one_set_is_scored_at_a_time(stage: str) -> None:
    with pytest.raises(ConfigError, match="data.mix: one set is scored at a time; give data.path"):
        load_config(stage, ["model=models/poems", "data.mix=[{path: a}]"])


def test_rows_in_memory_are_no_source(sources: str, tmp_path: Path, store: Path) -> None:
    config: Any = load_config("pretrain", ["model=tiny", *QUICK, f"data.mix={sources}", f"output_dir={tmp_path}/x"])
    with pytest.raises(DataError, match="data.mix names the rows, and rows in memory are given as well"):
        train("pretrain", config, {"src_txt": ["春"]})


def test_a_message_names_the_source_and_where_its_columns_are_said(tmp_path: Path, store: Path) -> None:
    for name, column in (("a", "src_txt"), ("b", "text1")):
        (tmp_path / f"{name}.csv").write_text(f"{column}\n" + "春\n夏\n秋\n" * 20)
    mix = f"[{{path: {tmp_path}/a.csv}}, {{path: {tmp_path}/b.csv}}]"
    with pytest.raises(DataError, match=r"^data\.mix, source b: .*columns: \{YOUR_COLUMN: src_txt\} \(beside its path"):
        run(tmp_path / "out", mix)


def test_the_whole_is_the_mean_by_weight() -> None:
    one = Validation(nll=10.0, tokens=10.0, characters=5.0, ends=1.0, end_nll=2.0)
    other = Validation(nll=60.0, tokens=20.0, characters=40.0)
    found = metrics_of_all(["a", "b"], [one, other], [0.9, 0.1])
    assert found["val/loss"] == pytest.approx(0.9 * 1 + 0.1 * 3)
    assert found["val/perplexity"] == pytest.approx(np.exp(1.2))
    assert found["val/perplexity_per_char"] == pytest.approx(np.exp(0.9 * 10 / 6 + 0.1 * 60 / 40))
    assert found["val/end_of_text_nll"] == 2.0  # of the source that has any
    assert (found["val/a/loss"], found["val/b/loss"]) == (1.0, 3.0)
