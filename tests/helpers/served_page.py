"""What tests of the server's page share: the page of a model that was tuned on a task, and what it shows and sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.browser import Page
from tests.helpers.models import ROOT, make_config, make_decoder
from tests.helpers.server_tools import Notebook, Served, served

KNOWN = "!document.querySelector('#card').hidden"
IDLE = "!document.querySelector('#write').disabled"
WRITTEN = f"document.querySelector('#status').innerText.includes('tokens/s') && {IDLE}"
OPEN = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"
RECIPES = ["白日依山尽，", "床前明月光，", "春风"]
"""What training samples from unless somebody says otherwise."""


@contextmanager
def of_task(
    tab: Page, tokenizer: Tokenizer, task: str, notebook: Notebook | None = None, **facts: Any
) -> Iterator[Served]:
    """The page of a model that was tuned on a data set of conf/data. notebook: takes feedback."""
    template = yaml.safe_load((ROOT / "conf" / "data" / f"{task}.yaml").read_text(encoding="utf-8"))["prompt_template"]
    run = {"config": {"data": {"path": f"prepared/sample/{task}"}, "train": {"sample_prompts": RECIPES}}}
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    with served(decoder, tokenizer.with_prompt_template(template), run=run) as running:
        running.service.serving[-1].facts |= facts
        running.service.recorder = notebook
        tab.events.clear()
        tab.open(running.url)
        tab.until(KNOWN)
        tab.value(OPEN)
        yield running


def ask_in_turns(tab: Page, prompt: str) -> None:
    tab.type("#prompt", prompt)
    tab.press("Enter", 13, control=True)
    tab.until(WRITTEN)


def said(tab: Page) -> list[list[str]]:
    """Roles and texts on the page, from above."""
    earlier = tab.value("[...document.querySelectorAll('#talk p')].map((each) => [each.className, each.textContent])")
    return [*earlier, ["assistant", tab.value("document.querySelector('#written').textContent")]]


def bodies(tab: Page) -> list[dict[str, Any]]:
    """What was posted."""
    sent = [event["params"]["request"] for event in tab.events if event["method"] == "Network.requestWillBeSent"]
    return [json.loads(request["postData"]) for request in sent if "postData" in request]
