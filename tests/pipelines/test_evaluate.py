"""The stage: what it prints, what it logs, what it gives back, and what it says to wrong commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from modules.config.data import DataConfig
from modules.config.loader import load_config
from modules.data.quarantine import DataError
from modules.data.splits import load_test_rows
from modules.evaluation.likelihood import score_folder
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer
from pipelines.evaluate import EvaluateResult, evaluate
from tests.helpers.models import make_config, make_decoder, save_model

POEMS = ["白日依山尽，黄河入海流。欲穷千里目，更上一层楼。", "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"] * 3
QUIET = ["tracking.log_system_metrics=false", "generation.max_new_tokens=8", "generation.temperature=0"]


@pytest.fixture
def model(store: Path, tokenizer: Tokenizer) -> Path:
    return save_model(store / "model", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})


@pytest.fixture
def other(store: Path, tokenizer: Tokenizer) -> Path:
    tuned = tokenizer.with_prompt_template("{src_txt}：")
    return save_model(store / "other", make_decoder(make_config(tokenizer.vocab_size), seed=9), tuned, {})


def write_rows(folder: Path, **splits: list[dict[str, object]]) -> Path:
    folder.mkdir()
    for name, rows in splits.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def run(*arguments: object) -> EvaluateResult:
    return evaluate(load_config("evaluate", [*QUIET, *map(str, arguments)]))


def test_a_task_from_file_to_tables(model: Path, other: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [{"src_txt": f"狐狸{i}", "tgt_txt": "酸葡萄", "choices": ["酸葡萄", "甜"], "answer": 0} for i in range(4)]
    test = [
        {"src_txt": "狐狸吃不到葡萄。走了。", "tgt_txt": "酸葡萄", "choices": ["甜葡萄", "酸葡萄"], "answer": 1},
        {"src_txt": "兔睡了" * 60, "tgt_txt": "别骄傲", "choices": ["别骄傲", "要睡觉", "跑"], "answer": 0},
    ]
    data = write_rows(store / "rows", train=train, validation=train, test=test)
    found = run("task=summarization", f"model={model}", f"baseline={other}", f"data.path={data}")
    assert list(found.evaluations) == ["model", "baseline", "lead", "nearest", "chance", "unigram", "bigram", "trigram"]
    assert found.evaluations["lead"].rows[0].text == "狐狸吃不到葡萄。"
    assert found.evaluations["nearest"]["rougeL"].of_rows().tolist() == [1, 0]
    assert found.evaluations["model"].counts == {"rows_cut": 1, "choices_cut": 1, "prompts_cut": 1}
    logged = MlflowClient().get_run(found.run_id).data.metrics
    for name in ("rougeL", "perplexity_per_char", "end_of_text_rate", "nearest_rougeL", "baseline_rouge1"):
        assert logged[f"test/{name}_low"] <= logged[f"test/{name}"] <= logged[f"test/{name}_high"]
    assert logged["test/chance_choice_accuracy"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert {"test/floor_trigram", "test/rows", "test/prompts_cut"} <= logged.keys()
    mlflow.set_experiment("moyun")
    table = mlflow.load_table("rows_model.json", [found.run_id])
    assert table["references"].tolist() == ["酸葡萄", "别骄傲"]
    assert table["text"].tolist() == [row.text for row in found.evaluations["model"].rows]
    assert table["rougeL"].tolist() == pytest.approx(found.evaluations["model"]["rougeL"].of_rows())
    printed = capsys.readouterr().out
    assert "summarization: 2 test rows, texts for 2 of them" in printed
    assert "model: prompts cut" in printed
    value, (low, high) = found.evaluations["nearest"]["rouge1"].value, found.evaluations["nearest"].intervals[0]
    assert f"{value:.4g}  [{low:.4g}, {high:.4g}]" in printed


def test_verse_stands_beside_peoples_own(model: Path, store: Path) -> None:
    rows = [{"src_txt": poem} for poem in POEMS]
    data = write_rows(store / "rows", train=rows[:3], validation=rows[:2], test=rows)
    found = run("task=poetry", f"model={model}", f"data.path={data}", "task.rows=4", "prompts=[春]").evaluations
    assert found["reference"]["quatrain or regulated"].value == found["reference"]["lines of one length"].value == 1
    assert found["reference"]["copied from training"].value == 1
    assert len(found["model"].rows) == 4
    assert found["model"].rows[0].source in ("白日依山尽，", "春眠不觉晓，")
    assert not found["model"]["repeated lines"].higher_is_better


def test_own_rows_without_training_rows(model: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "my.csv").write_text("frage,antwort\n问一,答一\n问二,答二\n", encoding="utf-8")
    own = ["data.test_path=my.csv", "data.path=null", "data.columns.frage=src_txt", "data.columns.antwort=tgt_txt"]
    found = run("task=instructions", f"model={model}", *own)
    assert list(found.evaluations) == ["model"]
    printed = capsys.readouterr().out
    for name in ("most_frequent", "nearest", "n-grams"):
        assert re.search(rf"{name} +no training rows \(data.path\)", printed)


def test_rows_of_one_group_are_resampled_together(model: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"src_txt": f"问{number}", "tgt_txt": f"答{number}", "group": number // 4} for number in range(40)]
    data = write_rows(store / "data", train=rows[:2], test=rows)
    found = run("task=instructions", "task.rows=8", f"model={model}", f"data.path={data}").evaluations
    assert "40 test rows in 10 groups" in capsys.readouterr().out
    assert {who: len(found[who]["perplexity_per_char"].units) for who in ("model", "bigram")} == {
        "model": 10,
        "bigram": 10,
    }
    assert len(found["nearest"]["rougeL"].statistics) == 8
    assert len(found["nearest"]["rougeL"].units) == len({row.number // 4 for row in found["nearest"].rows})
    assert (
        len(
            score_folder(
                model, load_test_rows(DataConfig(path=str(data)), None, {"group"}), 512
            ).perplexity_per_char.units
        )
        == 10
    )


def test_test_rows_of_a_group_that_was_trained_on_are_counted(
    model: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"src_txt": f"问{number}", "tgt_txt": f"答{number}", "passage": number // 3} for number in range(90)]
    data = write_rows(store / "data", train=rows[:37], validation=rows[70:], test=rows[37:70])
    run("task=instructions", "task.rows=1", f"model={model}", f"data.path={data}", "data.columns.passage=group")
    assert "; of a group that training rows are of: 2" in capsys.readouterr().out  # 36 to 38 are of passage 12


def test_bad_rows_of_either_split_are_counted_shown_and_listed(
    model: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [{"src_txt": f"问{number}", "tgt_txt": f"答{number}"} for number in range(4)]
    bad: dict[str, object] = {"src_txt": "", "tgt_txt": "答"}
    data = write_rows(store / "data", train=[*rows, bad], test=[*rows, {"src_txt": "问"}])
    leave_out = [f"data.path={data}", "data.bad_rows=quarantine", "data.max_bad_rows=0.2"]
    found = run("task=instructions", f"model={model}", *leave_out)
    printed = capsys.readouterr().out
    assert re.search(r"src_txt is empty +1\b", printed)
    assert re.search(r"tgt_txt is missing +1\b", printed)
    logged = MlflowClient().get_run(found.run_id)
    assert logged.data.metrics["rows/quarantined"] == 2
    listed = mlflow.artifacts.load_text(f"runs:/{found.run_id}/quarantine.jsonl").splitlines()
    assert sorted((Path(row["file"]).name, row["line"]) for row in map(json.loads, listed)) == [
        ("test.jsonl", 5),
        ("train.jsonl", 5),
    ]


def test_a_metric_that_rows_have_nothing_for_is_left_out_and_named(
    model: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "my.csv").write_text("src_txt,tgt_txt\n问一,答一\n问二,答二\n", encoding="utf-8")
    found = run("task=summarization", f"model={model}", "data.test_path=my.csv", "data.path=null").evaluations
    assert "rouge1" in found["model"]
    assert "choice_accuracy" not in found["model"]
    assert re.search(r"choices +the rows have no choices", capsys.readouterr().out)


def test_a_dry_run_says_what_would_be_done(model: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(store / "rows", train=[{"src_txt": "甲"}] * 3, test=[{"src_txt": "甲，乙"}] * 3)
    assert run("task=poetry", "task.rows=2", f"model={model}", f"data.path={data}", "dry_run=true").evaluations == {}
    assert "2 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["task=multiple_choice"], "the metric choices needs rows with choices; these have src_txt: name other"),
        (["task.metrics=[slots]"], "the metric slots needs rows with slots"),
        (["task.metrics=[couplet]"], "the metric couplet needs rows with tgt_txt"),
        (["task.examples=2"], "plain text has no answers to show"),
        (["task.metrics=[repetition]", "task.trivial=[nearest]"], "nearest needs training rows with tgt_txt"),
        (["task.metrics=[rouge]"], "the metric rouge needs rows with tgt_txt"),
    ],
)
def test_rows_that_do_not_fit_a_metric_are_refused(
    model: Path, store: Path, arguments: list[str], complaint: str
) -> None:
    data = write_rows(store / "rows", train=[{"src_txt": "甲"}] * 3, test=[{"src_txt": "甲，乙"}] * 3)
    with pytest.raises((DataError, ValueError), match=complaint):
        run(f"model={model}", *arguments, f"data.path={data}")


def test_a_folder_given_for_the_test_is_its_test_file_and_no_other_rows_are_fitted(
    model: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [{"src_txt": poem} for poem in POEMS[:2]]
    data = write_rows(store / "rows", train=train, test=[{"src_txt": "春眠不觉晓。"}, train[0], train[0]])
    found = run(f"model={model}", f"data.test_path={data}", "prompts=[]")
    assert list(found.evaluations) == ["model"]
    assert len(found.evaluations["model"]["perplexity_per_char"].statistics) == 3
    printed = capsys.readouterr().out
    assert f"rows of {data}/test.jsonl\n" in printed
    assert re.search(r"n-grams +no training rows \(data.path\)", printed)
    (entry,) = MlflowClient().get_run(found.run_id).inputs.dataset_inputs
    assert entry.dataset.name == "rows-test"
    again = run(f"model={model}", f"data.path={data}", "prompts=[]")
    assert f"rows of {data}/test.jsonl; also among the training rows: 2\n" in capsys.readouterr().out
    assert MlflowClient().get_run(again.run_id).data.metrics["test/rows_in_training"] == 2
    page = mlflow.artifacts.load_text(f"runs:/{again.run_id}/report.html")
    assert "of these among the training rows too" in page


def test_pairs_are_not_scored_beside_plain_training_rows(model: Path, store: Path) -> None:
    data = write_rows(store / "rows", train=[{"src_txt": "甲"}] * 2, test=[{"src_txt": "甲", "tgt_txt": "乙"}])
    with pytest.raises(DataError, match="train.jsonl: plain text .*test.jsonl: pairs"):
        run(f"model={model}", f"data.path={data}")


def test_examples_without_training_rows_are_refused_by_the_dry_run_too(model: Path, store: Path) -> None:
    data = write_rows(store / "rows", test=[{"src_txt": "甲", "tgt_txt": "乙"}] * 2)
    with pytest.raises(ValueError, match="needs training rows with tgt_txt"):
        run("task.examples=2", "dry_run=true", f"model={model}", f"data.test_path={data}/test.jsonl")


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("group", ["A", "", None, 1, 1.5], None),
        ("group", ["甲组"] * 5, "column group +all rows have the same group"),
        ("group", ["男", "女", "男", "女", "女"], "column group +2 groups are too few for intervals"),
        ("references", ["见第0页"] * 5, r"column references +row 1: references \(见第0页\) must be a list"),
        ("references", [["丁"], None, "", [], ["丙", "戊"]], None),
        ("choices", ["甲/乙"] * 5, "choices +the rows have no answer|choices +the rows have no choices"),
    ],
)
def test_a_column_of_ones_own_keeps_nobody_from_being_scored(
    model: Path, store: Path, capsys: pytest.CaptureFixture[str], column: str, values: list[object], said: str | None
) -> None:
    rows: list[dict[str, object]] = [
        {"src_txt": f"问{i}", "tgt_txt": f"答{i}", column: v} for i, v in enumerate(values)
    ]
    data = write_rows(store / "rows", test=rows)
    found = run("task=summarization", f"model={model}", f"data.test_path={data}/test.jsonl").evaluations["model"]
    assert len(found["perplexity_per_char"].statistics) == 5
    printed = capsys.readouterr().out
    assert bool(re.search("column (group|references)", printed)) == bool(said and said.startswith("column"))
    assert said is None or re.search(said, printed)


@pytest.fixture
def bert_model(store: Path) -> Path:
    (store / "vocabulary").mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "，", *sorted(set("".join(POEMS)) - set("，。"))]
    (store / "vocabulary" / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    tokenizer = load_tokenizer(store / "vocabulary")
    return save_model(store / "bert", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})


@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_a_dry_run_refuses_what_the_run_refuses(bert_model: Path, store: Path, dry_run: str) -> None:
    pairs = [{"src_txt": poem[:5], "tgt_txt": poem[6:11]} for poem in POEMS[:2]]
    data = write_rows(store / "rows", train=pairs, test=pairs)
    with pytest.raises(ValueError, match=r"separator='\\n\\n': .* loses it.* e\.g\. task\.separator='，'"):
        run(f"model={bert_model}", f"data.path={data}", "task.examples=1", f"dry_run={dry_run}", "task.metrics=[bleu]")


def test_a_dry_run_names_what_the_tokenizer_loses(
    bert_model: Path, store: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [{"src_txt": poem[:5], "tgt_txt": poem[6:11] + "鱻"} for poem in POEMS[:2]]
    data = write_rows(store / "rows", train=pairs, test=pairs)
    arguments = [f"model={bert_model}", f"data.path={data}", "task.examples=1", "task.metrics=[bleu]", "prompts=[]"]
    arguments += ["task.separator=，\n", "task.template=龘{src_txt}，"]
    run(*arguments, "dry_run=true")
    said = capsys.readouterr().out
    assert re.search(r"model: lost by the tokenizer.* '鱻' 3×", said)
    assert re.search(r"left out: '龘' of the prompt template +this model's tokenizer loses it", said)
    assert re.search(r"left out: '\\n' of task\.separator +this model's tokenizer loses it", said)
    run(*arguments)
    assert not [message for message in caplog.messages if "generation.stop" in message]
