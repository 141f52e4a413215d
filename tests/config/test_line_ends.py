"""Line ends in templates, separators, stop texts, prompts and mappings; escapes, and quotes around a text."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from modules.config.loader import load_config, to_yaml
from tests.config.test_texts_and_paths import at, complaints_of, load


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("finetune", "data.prompt_template"),
        ("main", "finetune.data.prompt_template"),
        ("evaluate", "task.template"),
        ("evaluate", "data.prompt_template"),
    ],
)
@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"问：{src_txt}\n答：", "问：{src_txt}\n答："),
        ("问：{src_txt}\n答：", "问：{src_txt}\n答："),
        (r"{src_txt}\t\n\n", "{src_txt}\t\n\n"),
        (r"{src_txt}\\n", r"{src_txt}\n"),
        (r"\\\n{src_txt}${x}", "\\\n{src_txt}${x}"),
    ],
)
def test_escapes_of_a_template_are_read_once(stage: str, key: str, typed: str, meant: str, tmp_path: Path) -> None:
    for arguments in ([f"{key}={typed}"], [f"--{key}", typed]):
        config = load(stage, *arguments)
        assert at(config, key) == meant
    if "${" not in meant:  # which is looked up when a file has it
        (tmp_path / "stored.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert load_config(stage, [f"config={tmp_path / 'stored.yaml'}"]) == config


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"[\n, 。\n]", ["\n", "。\n"]),
        (r"['\n\n', \t]", ["\n\n", "\t"]),
        (r'["\n"]', ["\n"]),
        (r'["\\n"]', [r"\n"]),  # YAML's own escape: no second one is read out of what it gives
        (r"[\\n]", [r"\n"]),
    ],
)
def test_escapes_of_stop_texts_are_read_once(typed: str, meant: list[str]) -> None:
    assert load("generate", f"generation.stop={typed}").generation.stop == meant
    assert load("generate", f"stop={typed}").generation.stop == meant
    assert load("main", f"finetune.generation.stop={typed}").finetune.generation.stop == meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("['\n\n']", ["\n\n"]),
        ("[\n]", ["\n"]),
        ("[\n, 。]", ["\n", "。"]),
        ("[。,\n]", ["。", "\n"]),
        ('["\n\n", "a\\n\nb"]', ["\n\n", "a\n\nb"]),
        ("['a\r\n', 'it''s\n\n x']", ["a\r\n", "it's\n\n x"]),
        ("['a',\n 'b'\n]", ["a", "b"]),
        ("- a\n- b", ["a", "b"]),
    ],
)
def test_line_ends_that_are_typed_as_such_are_kept(typed: str, meant: list[str]) -> None:
    assert load("generate", f"generation.stop={typed}").generation.stop == meant
    assert load("evaluate", f"prompts={typed}").prompts == meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("[春\n秋, '冬\n\n']", ["春\n秋", "冬\n\n"]),
        ("[\n  春,\n  秋,\n]", ["春", "秋"]),
        ("[don't, won't, \"a\nb\"]", ["don't", "won't", "a\nb"]),
    ],
)
def test_prompts_keep_their_line_ends(typed: str, meant: list[str]) -> None:
    assert load("finetune", f"train.sample_prompts={typed}").train.sample_prompts == meant


def test_a_mappings_texts_keep_their_line_ends() -> None:
    assert load("finetune", "data.columns={src_txt: 'a\n\nb', c: \"d\ne\"}").data.columns == {
        "src_txt": "a\n\nb", "c": "d\ne",
    }  # fmt: skip


@pytest.mark.parametrize("typed", ["[\n春]", "[春\n]", "[春,\n秋]"])
def test_a_line_end_that_may_belong_to_a_stop_text_is_refused(typed: str) -> None:
    (complaint,) = complaints_of("generate", f"generation.stop={typed}")
    assert "put a text and its line ends in quotes" in complaint


@pytest.mark.parametrize(
    "argument", ['data.prompt_template="{src_txt}"', r"task.template='{src_txt}\n'", r'task.separator="\n"']
)
def test_quotes_around_a_text_are_refused(argument: str) -> None:
    (complaint,) = complaints_of("evaluate", argument)
    assert "at both ends would be part of the text: leave them out" in complaint


def test_quotes_within_a_text_are_kept() -> None:
    assert load("evaluate", 'task.template="{src_txt}"：').task.template == '"{src_txt}"：'
    assert load("evaluate", 'task.separator="').task.separator == '"'


def test_a_separators_escapes_are_read() -> None:
    assert load("evaluate", r"task.separator=\n###\n").task.separator == "\n###\n"


@pytest.mark.parametrize("key", ["data.prompt_template", "task.template"])
@pytest.mark.parametrize("text", [r"{src_txt}\d", r"{src_txt}\r\n", "{src_txt}\\"])
def test_an_escape_that_is_none_is_refused(key: str, text: str) -> None:
    (complaint,) = complaints_of("evaluate", f"{key}={text}")
    assert complaint.startswith(f"{key}={text} (command line): \\")
    assert complaint.endswith(r"is no escape: \n is a line end, \t a tab, and a backslash is written \\")


@pytest.mark.parametrize("key", ["prompt", "model"])
def test_other_texts_hold_backslashes_as_they_are(key: str) -> None:
    assert getattr(load("generate", rf"{key}=a\nb\\c\d"), key) == r"a\nb\\c\d"


def test_a_file_is_yaml_and_nothing_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('data.prompt_template: "{src_txt}\\n"\n')
    with caplog.at_level(logging.WARNING):
        assert load("finetune", f"config={file}").data.prompt_template == "{src_txt}\n"
    assert not caplog.messages
    file.write_text("data.prompt_template: '{src_txt}\\n'\ngeneration.stop: [\\n]\n")
    with caplog.at_level(logging.WARNING):
        config = load("finetune", f"config={file}")
    assert (config.data.prompt_template, config.generation.stop) == (r"{src_txt}\n", [r"\n"])
    assert [message.partition(" (mine.yaml) holds a backslash")[0] for message in caplog.messages] == [
        "data.prompt_template", "generation.stop",
    ]  # fmt: skip
