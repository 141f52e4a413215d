"""The page as it suits the model: its task, its parameters, and what it says of a refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import yaml

from modules.config.generation import GenerationConfig, LimitsConfig
from modules.inference.server.requests import RequestError, parse_parameters
from modules.inference.server.web_page import OF_BEAMS, model_facts, request_fields
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.browser import Page, page
from tests.helpers.models import ROOT, make_config, make_decoder
from tests.helpers.served_page import KNOWN, WRITTEN, ask_in_turns, bodies, of_task, said
from tests.helpers.server_tools import served

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with page() as opened:
        opened.look(1200, 900)
        yield opened


# --- the task ---


def test_chips_hints_and_parameters_are_those_of_the_task(tab: Page, tokenizer: Tokenizer) -> None:
    with of_task(tab, tokenizer, "couplets"):
        assert tab.text("#prompt-label") == "上联"
        assert "下联" in tab.value("document.querySelector('#prompt').placeholder")
        chips = tab.value("[...document.querySelectorAll('#examples button')].map((each) => each.textContent)")
        assert chips == tab.value("import('./tasks.js').then((tasks) => tasks.TASKS.couplets.examples)")
        assert not {"白日依山尽，", "春风"} & set(chips)
        tab.click("#examples button")
        tab.until(WRITTEN)
        (body,) = bodies(tab)
        assert (body["max_tokens"], body["temperature"]) == (32, 0)
        assert body["messages"] == [{"role": "user", "content": chips[0]}]
        ask_in_turns(tab, "春")
        assert bodies(tab)[-1]["messages"] == [{"role": "user", "content": "春"}]  # no couplet has earlier turns
        assert [role for role, _ in said(tab)] == ["user", "assistant", "user", "assistant"]


def test_what_the_page_says_of_tasks_is_what_conf_says(tab: Page, tokenizer: Tokenizer) -> None:
    with of_task(tab, tokenizer, "couplets"):
        tasks = tab.value("import('./tasks.js').then((tasks) => tasks.TASKS)")
    templates = {}
    for path in (ROOT / "conf" / "data").glob("*.yaml"):
        templates[path.stem] = yaml.safe_load(path.read_text(encoding="utf-8")).get("prompt_template")
    assert set(tasks) == {name for name, template in templates.items() if template}
    for name, task in tasks.items():
        assert task["template"] == templates[name]
        generation = yaml.safe_load((ROOT / "conf" / "task" / f"{name}.yaml").read_text(encoding="utf-8"))["generation"]
        generation["max_tokens"] = generation.pop("max_new_tokens")
        assert task["generation"] == generation


def test_a_model_of_several_tasks_offers_a_prompt_of_each(tab: Page, tokenizer: Tokenizer) -> None:
    templates = {"classical_modern": "{src_txt}\n今译：", "couplets": "{src_txt}\n下联：", "mine": "{src_txt}？"}
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    with served(decoder, tokenizer.with_prompt_template(None, templates)) as running:
        tab.open(running.url)
        tab.until(KNOWN)
        chips = tab.value("[...document.querySelectorAll('#examples button')].map((each) => each.textContent)")
    assert chips[:2] == ["学而时习之，不亦说乎？\n今译：", "烽火连三月\n下联："]
    assert len(chips) == 5  # with those of verse, which it continues


@pytest.mark.parametrize(
    ("task", "path", "template", "expected"),
    [
        ("couplets", "prepared/mine", "{src_txt}\n", "上联"),
        ("", "prepared/full/couplets", "{src_txt}\n", "上联"),
        ("", "prepared/sample/couplets", "上联：{src_txt}\n", "消息"),  # asked otherwise than the task is
        ("", "prepared/mine", "{src_txt}\n", "消息"),
        ("constructor", "prepared/mine", "{src_txt}\n", "消息"),
        ("", "prepared/sample/poems", None, "开头"),
    ],
)
def test_a_task_is_told_by_its_name_and_template(
    tab: Page, tokenizer: Tokenizer, task: str, path: str, template: str | None, expected: str
) -> None:
    run = {"config": {"data": {"path": path}, "task": {"name": task}}}
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    with served(decoder, tokenizer.with_prompt_template(template), run=run) as running:
        tab.open(running.url)
        tab.until(KNOWN)
        assert tab.text("#prompt-label") == expected


def test_prompts_that_somebody_gave_to_training_are_the_chips(tokenizer: Tokenizer) -> None:
    given = {"config": {"train": {"sample_prompts": ["问一", "问二"]}}}
    tuned, decoder = tokenizer.with_prompt_template("{src_txt}\n"), make_decoder(make_config(tokenizer.vocab_size))
    limits = LimitsConfig()
    assert model_facts("m", decoder, tuned, limits, given)["examples"] == ["问一", "问二"]
    assert model_facts("m", decoder, tuned, limits, {})["examples"] == []
    assert "春风" in model_facts("m", decoder, tokenizer, limits, {})["examples"]


# --- the parameters ---


def test_every_parameter_of_the_server_is_a_field_in_both_languages(tab: Page, tokenizer: Tokenizer) -> None:
    names = {entry.name for entry in fields(GenerationConfig)} - {"max_new_tokens", *OF_BEAMS} | {"max_tokens"}
    assert {field["name"] for field in request_fields()} == names
    assert all(field["hint"] for field in request_fields())
    with of_task(tab, tokenizer, "couplets"):
        words = tab.value("import('./words.js').then((words) => words.WORDS)")
        assert names <= set(words)
        shown = tab.value("[...document.querySelectorAll('.field')].map((each) => each.innerText)")
        assert len(shown) == len(names)
        tab.click("#language")
        shown = " ".join(tab.value("[...document.querySelectorAll('.field')].map((each) => each.innerText)"))
        tab.click("#language")
        assert "Divides the logits; 0: greedy, the most likely token each time." in shown


def test_what_stands_in_the_fields_is_sent_as_what_it_is(tab: Page, tokenizer: Tokenizer) -> None:
    with of_task(tab, tokenizer, "couplets"):
        for name, text in {
            "max_tokens": "5", "temperature": "0.5", "top_k": "9", "top_p": "0.8", "min_p": "0.01", "seed": "3",
            "repetition_penalty": "1.1", "presence_penalty": "-0.5", "frequency_penalty": "0.25",
            "logit_bias": '{"5": -100}', "stop_texts": "永远不会有的\n\\n",
        }.items():  # fmt: skip
            tab.type(f"#{name}", text)
        ask_in_turns(tab, "春")
        assert bodies(tab)[-1] == {
            "stream": True, "stream_options": {"include_usage": True}, "messages": [{"role": "user", "content": "春"}],
            "max_tokens": 5, "temperature": 0.5, "top_k": 9, "top_p": 0.8, "min_p": 0.01, "seed": 3,
            "repetition_penalty": 1.1, "presence_penalty": -0.5, "frequency_penalty": 0.25,
            "logit_bias": {"5": -100}, "stop": ["永远不会有的", "\n"],
        }  # fmt: skip
        tab.value("document.querySelector('#form').value = '五绝'")
        tab.click("#tones")
        tab.type("#prompt", "春")
        tab.press("Enter", 13, control=True)
        tab.until("!document.querySelector('#write').disabled")
        assert (bodies(tab)[-1]["form"], bodies(tab)[-1]["tones"]) == ("五绝", True)


# --- refusals ---

WRONG: dict[str, list[Any]] = {
    "max_new_tokens": ["x", 0, 10**13, True],
    "temperature": ["x", -1, 2000],
    "top_k": ["x", -1, 1.5],
    "top_p": ["x", 0, 2],
    "min_p": ["x", -1, 2],
    "repetition_penalty": ["x", 0, 200],
    "presence_penalty": ["x", 3],
    "frequency_penalty": ["x", -3],
    "logit_bias": ["x", {"x": 1}, {"5": 200}, {str(token): 1 for token in range(301)}],
    "seed": ["x", -1],
    "stop": [5, [""], ["x"] * 17, ["x" * 257]],
    "form": [5, "五言"],
    "tones": ["x", True],
}


def test_every_refusal_of_a_parameter_is_in_chinese(tab: Page, tokenizer: Tokenizer) -> None:
    with of_task(tab, tokenizer, "couplets"):
        for name, values in WRONG.items():
            for value in values:
                with pytest.raises(RequestError) as caught:
                    parse_parameters({name: value}, {"max_new_tokens": "max_tokens"})
                problem = json.dumps({"message": str(caught.value), "param": caught.value.field})
                found = tab.value(f"import('./refusals.js').then((all) => all.inChinese({problem}, 400))")
                words = re.sub(r"token|limits\.\w+|top-[pk]|min-p|true|false|而不是 .*", "", found["text"])
                assert not re.search("[A-Za-z]{2}", words), found
                assert found["detail"] == ""


@pytest.mark.parametrize(
    ("problem", "status", "text"),
    [
        ({"message": "the engine was hit by a stone", "code": "overloaded"}, 503, "排队的人太多，请稍后再试"),
        ({"message": "x", "code": "model_lost"}, None, "写到一半，模型的进程停了，正在重新启动，请稍后再试"),
        ({"message": "x", "code": "model_failed"}, None, "模型在这个请求上出错了，原因在服务器的日志里"),
        ({"message": "x", "code": "answer_not_found"}, 404, "服务器已经不记得这段文字，不能再评价了"),
        ({"message": "temperature is too warm for the season", "param": "temperature"}, 400, "温度有误"),
        ({"message": "nobody is in"}, 503, "服务器现在不接受请求"),
        ({"message": "Bad Gateway"}, 502, "服务器没有回应代理"),
        ({"message": "no idea"}, 418, "服务器拒绝了"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_refusal_that_nobody_foresaw_is_told_by_what_it_is_about(
    tab: Page, tokenizer: Tokenizer, problem: dict[str, str], status: int | None, text: str
) -> None:
    with of_task(tab, tokenizer, "couplets"):
        found = tab.value(
            f"import('./refusals.js').then((all) => all.inChinese({json.dumps(problem)}, {json.dumps(status)}))"
        )
    assert found == {"text": text, "detail": "" if "code" in problem else problem["message"]}
