"""The page of a model with a prompt template: turns and thumbs; a phone's screen, and names for everything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from modules.inference.server.requests import RequestError
from modules.inference.server.web_page import WEB
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.browser import Page, page
from tests.helpers.served_page import KNOWN, OPEN, WRITTEN, ask_in_turns, bodies, of_task, said
from tests.helpers.server_tools import Notebook

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with page() as opened:
        opened.look(1200, 900)
        yield opened


# --- turns ---


def test_turns_again_and_edited(tab: Page, tokenizer: Tokenizer) -> None:
    with of_task(tab, tokenizer, "instructions") as running:
        for name, text in {"max_tokens": "6", "temperature": "0.9"}.items():
            tab.type(f"#{name}", text)
        ask_in_turns(tab, "春")
        assert tab.value("document.querySelector('#prompt').value") == ""
        ask_in_turns(tab, "花")
        first, answers = said(tab)[:2], [said(tab)[-1][1]]
        tab.click("#again")
        tab.until(WRITTEN)
        again, before = bodies(tab)[-1], bodies(tab)[-2]
        assert again["messages"] == before["messages"]
        assert again["seed"] != before["seed"]
        assert said(tab)[:2] == first
        answers.append(said(tab)[-1][1])
        expected = running.post("/v1/chat/completions", again | {"stream": False, "stream_options": None}).json()
        assert answers[1] == expected["choices"][0]["message"]["content"]
        tab.click("#edit")
        assert tab.value("document.querySelector('#prompt').value") == "花"
        assert said(tab) == first
        ask_in_turns(tab, "月")
        assert [text for _, text in said(tab)][:3] == [first[0][1], first[1][1], "月"]
        assert len(bodies(tab)[-1]["messages"]) == 3
        tab.click("#with_earlier")
        ask_in_turns(tab, "风")
        assert bodies(tab)[-1]["messages"] == [{"role": "user", "content": "风"}]


def test_nothing_typed_is_lost_to_a_refusal(tab: Page, tokenizer: Tokenizer) -> None:
    with of_task(tab, tokenizer, "instructions") as running:
        ask_in_turns(tab, "春")
        before = said(tab)
        running.service.state = "draining"
        tab.type("#prompt", "花开")
        tab.press("Enter", 13, control=True)
        tab.until("document.querySelector('#error').innerText.startsWith('503 · 服务器正在停止')")
        running.service.state = "ready"
        assert said(tab) == before
        assert tab.value("document.querySelector('#prompt').value") == "花开"


def test_an_answer_that_broke_off_is_no_part_of_the_conversation(tab: Page, tokenizer: Tokenizer) -> None:
    with of_task(tab, tokenizer, "instructions") as running:
        running.pace.seconds = 0.02
        tab.type("#max_tokens", "60")
        tab.type("#prompt", "春")
        tab.press("Enter", 13, control=True)
        tab.until("document.querySelector('#written').textContent.length > 2")
        running.pace.fail = True
        tab.until("!document.querySelector('#error').hidden")
        running.pace.fail, running.pace.seconds = False, 0
        assert len(said(tab)[-1][1]) > 2
        tab.type("#max_tokens", "4")
        ask_in_turns(tab, "花")
        assert bodies(tab)[-1]["messages"] == [{"role": "user", "content": "花"}]


# --- thumbs ---


def test_thumbs_go_to_the_server(tab: Page, tokenizer: Tokenizer) -> None:
    notebook = Notebook()
    with of_task(tab, tokenizer, "instructions", notebook):
        tab.type("#max_tokens", "6")
        ask_in_turns(tab, "春")
        notebook.refusal = RequestError(404, "no answer of this id is remembered", "id", "not_found")
        tab.click("#up")
        tab.until("document.querySelector('#error').innerText.startsWith('404 · ')")
        assert "no answer of this id is remembered" in tab.text("#error")
        assert not tab.value("document.querySelector('#up').disabled")
        notebook.refusal = None
        tab.click("#up")
        tab.until("document.querySelector('#up').getAttribute('aria-pressed') === 'true'")
        ask_in_turns(tab, "花")
        assert tab.value("document.querySelector('#up').getAttribute('aria-pressed')") == "false"
        tab.click("#down")
        tab.type("#comment", "不通")
        tab.type("#correction", "花开了")
        tab.click("#send")
        tab.until("document.querySelector('#down').getAttribute('aria-pressed') === 'true'")
        first, second = notebook.ratings
        assert (first.value, first.id.partition("-")[0]) == ("up", "chatcmpl")
        assert (second.value, second.comment, second.correction) == ("down", "不通", "花开了")
        assert second.id not in (first.id, "")


def test_what_is_typed_about_a_text_stays_while_the_page_looks_at_the_server(tab: Page, tokenizer: Tokenizer) -> None:
    """It reads the model's card again when the server was away, and every half minute."""
    with of_task(tab, tokenizer, "instructions") as running:
        running.service.recorder = Mock()  # so that the card tells of feedback
        tab.value("window.old = true; location.reload()")
        tab.until(f"!window.old && document.readyState === 'complete' && {KNOWN}")
        tab.value(OPEN)
        tab.type("#max_tokens", "6")
        ask_in_turns(tab, "春")
        tab.click("#down")
        tab.type("#comment", "不通")
        tab.type("#correction", "花开了")
        for state, shown in (("draining", "waiting"), ("ready", "ready")):
            running.service.state = state  # type: ignore[assignment]
            tab.value("document.dispatchEvent(new Event('visibilitychange'))")
            tab.until(f"document.querySelector('#state').className === '{shown}'")
        typed = ["comment", "correction"]
        assert [tab.value(f"document.querySelector('#{name}').value") for name in typed] == ["不通", "花开了"]
        assert not tab.value("document.querySelector('#feedback').hidden")


def test_no_thumbs_where_nobody_keeps_them(tab: Page, tokenizer: Tokenizer) -> None:
    with of_task(tab, tokenizer, "instructions"):
        ask_in_turns(tab, "春")
        assert tab.value("document.querySelector('#thumbs').hidden")


# --- for everybody ---


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_phone_shows_all_without_scrolling_sideways_and_everything_has_a_name(
    tab: Page, tokenizer: Tokenizer, language: str
) -> None:
    with of_task(tab, tokenizer, "summarization", Notebook(), version="12", name="n" * 80):
        tab.value(f"localStorage.setItem('language', '{language}')")
        tab.look(360, 700, mobile=True)
        tab.value("window.old = true; location.reload()")
        tab.until(
            f"!window.old && document.readyState === 'complete' && {KNOWN}"
            f" && document.documentElement.lang === '{language}'"
        )
        tab.value(OPEN)
        for prompt in ("x" * 60, "春"):
            tab.type("#prompt", prompt)
            tab.click("#write")
            tab.until(WRITTEN)
            tab.click("#down")
            assert tab.value("document.documentElement.scrollWidth") == 360
        assert tab.text('[data-fact="version"]') == "12"
        nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
        controls = [
            node
            for node in nodes
            if node.get("role", {}).get("value")
            in ("button", "textbox", "checkbox", "combobox", "DisclosureTriangle", "group")
            and not node.get("ignored")
        ]
        nameless = [node for node in controls if not node.get("name", {}).get("value", "").strip()]
        assert len(controls) > 20
        assert [node["role"]["value"] for node in nameless if node["role"]["value"] != "group"] == []
        tab.value("localStorage.removeItem('language')")
        tab.look(1200, 900)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("which", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_apart(which: int) -> None:
    """WCAG's 4.5 for text, 3 for what isn't text."""
    blocks = (WEB / "page.css").read_text(encoding="utf-8").split(":root {")[1:3]
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[which]))
    pairs = [("ink", "paper"), ("ink", "sheet"), ("ink", "said"), ("faint", "paper"), ("faint", "sheet")]
    pairs += [("wrong", "wrong-sheet"), ("on-seal", "seal"), ("seal", "sheet")]
    for text, below, least in [*((*pair, 4.5) for pair in pairs), ("ready", "paper", 3), ("waiting", "paper", 3)]:
        light, dark = sorted((luminance(colour[text]), luminance(colour[below])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, (text, below)
