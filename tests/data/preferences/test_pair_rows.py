"""Preference rows in the layouts that people have them in: read alike; what can't be learnt from is named by line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from modules.config.data import DataConfig
from modules.config.loader import load_config
from modules.data.quarantine import DataError, Quarantine
from modules.data.reading.headers import check_headers
from modules.data.rows import load_rows
from modules.data.splits import load_splits

TALK = [{"role": "user", "content": "春"}, {"role": "assistant", "content": "眠"}]
SAME = {
    "src_txt": "春",
    "tgt_txt": "眠",
    "messages": json.dumps(TALK, ensure_ascii=False),
    "rejected": "睡",
}
ASKED, CHOSEN, REJECTED = TALK[0], TALK[1], {"role": "assistant", "content": "睡"}
SHARED = {"user": "human", "assistant": "gpt"}


def share_gpt(message: dict[str, str]) -> dict[str, str]:
    return {"from": SHARED[message["role"]], "value": message["content"]}


LAYOUTS: dict[str, dict[str, Any]] = {
    "TRL, texts": {"prompt": "春", "chosen": "眠", "rejected": "睡"},
    "TRL, messages": {"prompt": [ASKED], "chosen": [CHOSEN], "rejected": [REJECTED]},
    "TRL, the prompt within": {"chosen": [ASKED, CHOSEN], "rejected": [ASKED, REJECTED]},
    "whole talks beside the prompt": {"prompt": "春", "chosen": [ASKED, CHOSEN], "rejected": [ASKED, REJECTED]},
    "LLaMA-Factory, ShareGPT": {
        "conversations": [share_gpt(ASKED)],
        "chosen": share_gpt(CHOSEN),
        "rejected": share_gpt(REJECTED),
    },
    "LLaMA-Factory, Alpaca": {"instruction": "春", "input": "", "chosen": "眠", "rejected": "睡"},
    "moyun": {"src_txt": "春", "chosen": "眠", "rejected": "睡"},
    "answers and what people disliked": {"src_txt": "春", "tgt_txt": "眠", "rejected": "睡"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_row(layout: str, tmp_path: Path) -> None:
    row = LAYOUTS[layout]
    lines = tmp_path / "pairs.jsonl"
    lines.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    table = tmp_path / "pairs.parquet"
    pd.DataFrame([row]).to_parquet(table)
    comma = tmp_path / "pairs.csv"
    with comma.open("w", encoding="utf-8", newline="") as file:
        texts = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in row.values()]
        csv.writer(file).writerows([list(row), texts])
    for source in (lines, table, [row], datasets.Dataset.from_list([row]), comma):
        assert load_rows(source, pairs=True, cache=tmp_path / "cache").to_list() == [SAME]


def test_columns_of_any_name() -> None:
    rows = [{"q": "春", "good": "眠", "bad": "睡", "poet": "孟浩然"}]
    columns = {"q": "src_txt", "good": "chosen", "bad": "rejected", "poet": "group"}
    assert load_rows(rows, columns, pairs=True).to_list() == [SAME | {"group": "孟浩然"}]


def test_an_instruction_has_its_input_history_and_system_message_with_it() -> None:
    row = LAYOUTS["LLaMA-Factory, Alpaca"] | {"input": "五言", "history": [["甲", "乙"]], "system": "写诗"}
    (found,) = load_rows([row], pairs=True).to_list()
    assert json.loads(found["messages"]) == [
        {"role": "system", "content": "写诗"},
        {"role": "user", "content": "甲"},
        {"role": "assistant", "content": "乙"},
        {"role": "user", "content": "春\n五言"},
        CHOSEN,
    ]


@pytest.mark.parametrize("history", [[["甲", "乙"]], '[["甲", "乙"]]'], ids=["list", "JSON in a CSV"])
@pytest.mark.parametrize("columns", [{}, {"instruction": "src_txt"}], ids=["found", "named"])
def test_columns_beside_an_instruction_may_be_written_as_a_csv_has_them(history: Any, columns: dict[str, str]) -> None:
    row = LAYOUTS["LLaMA-Factory, Alpaca"] | {"input": 5, "history": history}
    (found,) = load_rows([row], columns, pairs=True).to_list()
    asked = [message["content"] for message in json.loads(found["messages"])]
    assert asked == ["甲", "乙", "春\n5", "眠"]
    assert set(found) == set(SAME)


def test_other_columns_do_no_harm_to_pairs(tmp_path: Path) -> None:
    """As in any other rows: some without a name, twice the same, or with a blank before a quote."""
    path = tmp_path / "pairs.csv"
    path.write_text('prompt,chosen,rejected,n,n,,\n春,眠,睡,1, "2",,\n', encoding="utf-8")
    check_headers(load_config("prefer", ["train.init_from=models/poems", f"data.path={path}"]))
    assert load_rows(path, pairs=True).to_list() == [SAME]


FAULTS: dict[str, dict[str, Any]] = {
    "rejected is missing": {"prompt": "春", "chosen": "眠"},
    "chosen is empty": {"prompt": "春", "chosen": "", "rejected": "睡"},
    "rejected is null": {"prompt": "春", "chosen": "眠", "rejected": None},
    "prompt is only white space": {"prompt": " ", "chosen": "眠", "rejected": "睡"},
    "has no prompt": {"chosen": "眠", "rejected": "睡"},
    "has the same text as chosen and as rejected": {"prompt": "春", "chosen": "眠", "rejected": "眠"},
    "to different prompts": {
        "chosen": [ASKED, CHOSEN],
        "rejected": [{"role": "user", "content": "秋"}, REJECTED],
    },
    "not one that goes on from prompt": {"prompt": "秋", "chosen": [ASKED, CHOSEN], "rejected": [ASKED, REJECTED]},
    "chosen ends with a user's message": {
        "chosen": [ASKED, CHOSEN, ASKED],
        "rejected": [ASKED, REJECTED],
    },
    "chosen ends with a user's message, not with an answer": {
        "prompt": "春",
        "chosen": [ASKED],
        "rejected": [REJECTED],
    },
    "prompt is null": {"prompt": None, "chosen": "眠", "rejected": "睡"},
    "a message must be": LAYOUTS["LLaMA-Factory, Alpaca"] | {"history": ["甲乙"]},
    "chosen can't be used: a message has the role": {
        "chosen": [ASKED, {"role": "poet"}],
        "rejected": [ASKED, REJECTED],
    },
    "chosen is a number": {"prompt": "春", "chosen": 3, "rejected": "睡"},
    "tools aren't done here": {"prompt": "春", "chosen": "眠", "rejected": "睡", "tools": "[f]"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_that_cannot_be_learnt_from_is_named_or_left_out(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in (LAYOUTS["TRL, texts"], FAULTS[fault])]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=rf"pairs.jsonl:2: .*{fault}"):
        load_rows(path, pairs=True)
    quarantine = Quarantine(0.5)
    assert load_rows(path, pairs=True, quarantine=quarantine).to_list() == [SAME]
    assert quarantine.rows[0]["line"] == 2


def test_what_is_lacking_is_said_before_anything_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "春", "choosen": "眠", "rejected": "睡"}), encoding="utf-8")
    config = load_config("prefer", ["train.init_from=models/poems", f"data.path={path}"])
    with pytest.raises(DataError, match=r"no column 'chosen'.*data\.columns\.choosen=chosen"):
        check_headers(config)
    config = load_config("prefer", ["train.init_from=models/poems", f"data.path={path}", "data.columns.choosen=chosne"])
    with pytest.raises(DataError, match=r"data\.columns\.choosen=chosne.*did you mean data\.columns\.choosen=chosen"):
        check_headers(config)


@pytest.mark.parametrize("prompt", ["prompt", "src_txt"])
@pytest.mark.parametrize("stage", ["finetune", "pretrain", "prepare", "evaluate"])
def test_preferences_do_not_pass_for_plain_text(stage: str, prompt: str, tmp_path: Path) -> None:
    """Their prompts alone would be learnt, or scored, and nothing would show it."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({prompt: "春", "chosen": "眠", "rejected": "睡"}), encoding="utf-8")
    given = {
        "finetune": ["train.init_from=models/poems", f"data.path={path}"],
        "pretrain": [f"data.path={path}"],
        "prepare": [f"source={path}"],
        "evaluate": ["model=models/poems", f"data.test_path={path}"],
    }
    with pytest.raises(DataError, match=r"python -m pipelines\.prefer"):
        check_headers(load_config(stage, given[stage]))
    with pytest.raises(DataError, match=r"python -m pipelines\.prefer"):
        load_rows(path)
    columns = {prompt: "src_txt", "chosen": "tgt_txt"}
    assert load_rows(path, columns).to_list() == [{"src_txt": "春", "tgt_txt": "眠"}]


def test_pairs_are_held_out_for_validation_with_all_that_they_hold() -> None:
    rows = [{"prompt": f"第{n}句", "chosen": "眠", "rejected": "睡"} for n in range(10)]
    splits = load_splits(DataConfig(validation_fraction=0.2), 1, rows, pairs=True)
    assert {name: len(split) for name, split in splits.items()} == {"train": 8, "validation": 2}
    assert set(splits["validation"].column_names) == set(SAME)
