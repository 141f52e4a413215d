"""A model's answers, ranked: the best and the worst of each prompt, what is left out, and the folder that is made."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pytest

from modules.checkpoint.loading import open_tokenizer
from modules.config.evaluation import EvaluateConfig, TaskConfig
from modules.config.loader import ConfigError, load_config
from modules.data.encoding import Documents
from modules.data.quarantine import DataError
from modules.data.rows import load_rows
from modules.evaluation.answers import Answer
from modules.evaluation.judging.judged_rows import judge_answers, preferences, scored
from modules.evaluation.task_evaluation import Task
from modules.evaluation.verse.form import rhyming
from modules.system.jsonl import read_jsonl
from modules.tokenizer.tokenizer import Tokenizer
from pipelines.prefer import prefer
from pipelines.prepare import prepare
from tests.helpers.models import ROOT, make_config, make_decoder, save_model

POEM = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
UNRHYMED = "黄河入海流。欲穷千里目，更上一层山。"
JUDGED = [
    "source=judged", f"model={ROOT / 'models' / 'poems'}", "task=poetry", "judge.rhyme=1", "prompts=8", "answers=6",
    "generation.max_new_tokens=60", "output_dir=judged",
]  # fmt: skip


def task_of(metrics: list[str], rows: dict[str, list[str]]) -> Task:
    config = EvaluateConfig(task=TaskConfig(metrics=metrics), ngram_floor=False)
    return Task(config, datasets.Dataset.from_dict(rows), None)


def ranked(task: Task, answers: list[list[Answer]], judges: dict[str, float]) -> tuple[list[Any], dict[str, int]]:
    """answers: of each prompt."""
    of_sample = [list(each) for each in zip(*answers, strict=True)]
    return preferences(task, of_sample, [scored(task, each, judges) for each in of_sample])


def test_the_best_and_the_worst_become_a_row() -> None:
    task = task_of(["verse"], {"src_txt": [POEM, POEM]})
    good, bad = Answer(POEM[6:], True), Answer(UNRHYMED, True)
    others = [Answer("黄河", True), Answer(POEM[6:] * 9, False), Answer(" ", True)]
    rows, counts = ranked(task, [[bad, good, *others], [good, good, *others]], {"rhyme": 1.0})
    assert rows == [
        {
            "src_txt": "白日依山尽，",
            "chosen": good.text,
            "rejected": bad.text,
            "chosen_scores": {"rhyme": 1.0},
            "rejected_scores": {"rhyme": 0.0},
        }
    ]
    assert counts == {"prompts": 2, "answers cut off or empty": 4, "answers not scored": 2, "prompts alike": 1}


def test_measures_are_weighed_and_less_may_be_better() -> None:
    rows = {"src_txt": ["[地点] 甲", "[地点] 乙"], "tgt_txt": ["甲好", "乙好"], "slots": ['["甲"]', '["乙"]']}
    task = task_of(["slots", "rouge"], rows)
    first, second, third = Answer("好", True), Answer("甲好", True), Answer("甲", True)
    given = [[first, second, third], [first, first, first]]
    ((row,), counts) = ranked(task, given, {"slot_error_rate": 1.0, "rougeL": 0.5})
    assert (row["chosen"], row["rejected"]) == ("甲好", "好")
    assert row["chosen_scores"] == {"slot_error_rate": 0.0, "rougeL": 1.0}
    assert row["rejected_scores"] == {"slot_error_rate": 1.0, "rougeL": pytest.approx(2 / 3)}
    assert counts["prompts alike"] == 1
    ((row,), _) = ranked(task, given, {"slot_error_rate": -1.0})
    assert (row["chosen"], row["rejected"]) == ("好", "甲好")


@pytest.fixture(scope="module")
def poems_file(tmp_path_factory: pytest.TempPathFactory, poems: dict[str, list[str]]) -> Path:
    path = tmp_path_factory.mktemp("poems") / "poems.jsonl"
    lines = (json.dumps({"src_txt": text}, ensure_ascii=False) for text in poems["train"][:40])
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_the_stage_makes_rows_that_prefer_reads(store: Path, poems_file: Path) -> None:
    result = prepare(load_config("prepare", [*JUDGED, f"data.path={poems_file}"]))
    rows = list(read_jsonl(result.folder / "train.jsonl.gz"))
    judged = result.manifest["judged"]
    assert judged["prompts"] == 8
    assert len(rows) == judged["rows"] == 8 - judged["prompts alike"] > 0
    openings = {json.loads(line)["src_txt"][: len(row["src_txt"])] for line in poems_file.open() for row in rows}
    for row in rows:
        assert row["src_txt"] in openings
        for side in ("chosen", "rejected"):
            found = rhyming(row["src_txt"] + row[side])
            assert not math.isnan(found)
            assert row[f"{side}_scores"] == {"rhyme": pytest.approx(found)}
        assert row["chosen_scores"]["rhyme"] > row["rejected_scores"]["rhyme"]
    assert judged["chosen"]["rhyme"] > judged["rejected"]["rhyme"]
    assert [row["rejected"] for row in load_rows(result.folder, pairs=True)] == [row["rejected"] for row in rows]
    again = prepare(load_config("prepare", [*JUDGED, f"data.path={poems_file}"]))
    assert again.manifest == result.manifest  # taken as it is
    with pytest.raises(DataError, match="holds other data"):
        prepare(load_config("prepare", [*JUDGED, f"data.path={poems_file}", "answers=4"]))


@pytest.fixture
def small(store: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that writes anything, and ends nothing."""
    monkeypatch.setattr("modules.evaluation.judging.judged_rows.complete", lambda answer: bool(answer.text.strip()))
    return save_model(store / "small", make_decoder(make_config(tokenizer.vocab_size), spread=1.0), tokenizer, {})


ASKING = [
    "source=judged", "model=small", "judge.repeated_characters=1", "answers=4", "data.path=asked.jsonl",
    "generation.max_new_tokens=40", "output_dir=judged",
]  # fmt: skip


@pytest.fixture
def asked(store: Path) -> Path:
    path = store / "asked.jsonl"
    lines = (json.dumps({"src_txt": f"{n}月", "tgt_txt": "花开"}, ensure_ascii=False) for n in "一二三四五六七八九十")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("other", [r"task.template={src_txt}\n译：", "task.examples=1", "dtype=bfloat16"])
def test_answers_that_were_asked_for_otherwise_are_not_taken_for_these(other: str, small: Path, asked: Path) -> None:
    prepare(load_config("prepare", ASKING))
    with pytest.raises(DataError, match="holds other data.*other prompts or sampling"):
        prepare(load_config("prepare", [*ASKING, other]))


def test_prefer_asks_as_the_answers_were_asked_for(small: Path, asked: Path) -> None:
    """And the model is asked afterwards as it was before."""
    prepare(load_config("prepare", [*ASKING, r"task.template={src_txt}\n译："]))
    given = ["train.init_from=small", "data.path=judged", "dry_run=true", "data.sequence_length=90"]
    setup = prefer(load_config("prefer", given)).setup
    assert setup is not None
    assert setup.tokenizer.fingerprint == open_tokenizer(small).fingerprint
    prompts = [setup.data.tokenizer.decode(ids_of(setup.data.documents["train"], n)) for n in range(3)]
    assert all("月\n译：" in prompt for prompt in prompts)
    setup = prefer(load_config("prefer", [*given, "data.prompt_template={src_txt}答"])).setup
    assert setup is not None
    assert setup.tokenizer.prompt_template == "{src_txt}答"
    assert "月答" in setup.data.tokenizer.decode(ids_of(setup.data.documents["train"], 0))


def ids_of(pairs: Documents, number: int) -> list[int]:
    ids: list[int] = pairs.ids_of(number).tolist()
    return ids


def test_bad_rows_that_are_left_out_are_said(small: Path, asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with asked.open("a", encoding="utf-8") as file:
        file.write('\n{"src_txt": "", "tgt_txt": "花"}')
    prepare(load_config("prepare", [*ASKING, "data.bad_rows=quarantine", "data.max_bad_rows=0.5"]))
    assert "src_txt is empty" in capsys.readouterr().out


def test_a_model_of_several_sources_is_asked_as_for_the_one_that_is_named(
    small: Path, store: Path, tokenizer: Tokenizer, asked: Path
) -> None:
    sources = [{"path": str(asked), "name": "moons"}, {"path": "poems.jsonl", "name": "poems"}]
    run = {
        "config": {"data": {"mix": sources}},
        "data": {"train/moons": "0", "train/poems": "0"},
        "prompt_templates": {"moons": "{src_txt}花？", "poems": "{src_txt}诗？"},
    }
    mixed = tokenizer.with_prompt_template("{src_txt}诗？", run["prompt_templates"])
    save_model(store / "mixed", make_decoder(make_config(tokenizer.vocab_size), spread=1.0), mixed, run)
    assert (
        prepare(load_config("prepare", [*ASKING, "model=mixed"])).manifest["asked"]["prompt_template"]
        == "{src_txt}花？"
    )


def test_rows_that_cannot_be_judged_so_are_refused_before_anything_is_written(store: Path, poems_file: Path) -> None:
    config = load_config("prepare", [*JUDGED[:3], "judge.rougeL=1", f"data.path={poems_file}"])
    with pytest.raises(DataError, match=r"judge\.rougeL needs rows with tgt_txt.*has src_txt"):
        judge_answers(config, Path("judged"), lambda what, share: None)
    assert not Path("judged").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judge.ryhme=1"], r"judge\.ryhme: no such measure; did you mean rhyme\?"),
        (["judge.rhyme=0"], "judge weighs nothing"),
        (["judge={}"], "judge must be given"),
        (["generation.temperature=0"], r"give generation\.temperature=1"),
        (["answers=1"], r"answers \(1\) must be at least 2"),
        (["model="], "needs model=FOLDER"),
        (["source=sample"], r"model goes with source=judged alone"),
        (["data.mix=[{path: a.csv}, {path: b.csv}]"], r"data\.mix: one set is asked at a time"),
        (["near_copies=drop"], "near_copies=drop goes with rows of your own alone, not with source=judged"),
        (["columns.text=src_txt"], "columns=.* goes with rows of your own alone, not with source=judged"),
        (["bad_rows=quarantine"], r"bad_rows=quarantine goes .*: give data\.bad_rows"),
        (["join=src_txt"], "join=src_txt goes with rows of your own"),
        (["source=judge"], "did you mean judged"),
    ],
)
def test_what_cannot_be_judged_is_refused_at_once(arguments: list[str], message: str) -> None:
    given = [each for each in JUDGED if each.partition("=")[0] not in {a.partition("=")[0] for a in arguments}]
    given = [each for each in given if not (each.startswith("judge") and arguments[0].startswith("judge"))]
    with pytest.raises(ConfigError, match=message):
        load_config("prepare", [*given, *arguments])
