"""The page at / in a real browser: what a person types, reads and clicks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from modules.checkpoint.model_folder import read_provenance
from modules.config.generation import LimitsConfig
from modules.inference.server.access import Access
from modules.inference.server.web_page import PAGE_FILES, model_facts
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.browser import Page, page
from tests.helpers.models import ROOT, make_config, make_decoder, save_model
from tests.helpers.served_page import IDLE, KNOWN, OPEN
from tests.helpers.server_tools import Served, served, until

pytestmark = pytest.mark.server

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Served]:
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    with served(decoder, tokenizer, batch_rows=1, queue_rows=1, request_rows=1, max_new_tokens=80) as running:
        yield running


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with page() as opened:
        opened.look(1200, 900)
        yield opened


@pytest.fixture
def opened(server: Served, tab: Page) -> Iterator[Page]:
    """The page with its card; afterwards nothing was asked for elsewhere, and the console is empty."""
    server.pace.seconds = 0
    tab.events.clear()
    tab.open(server.url)
    tab.until("document.querySelectorAll('#examples button').length")
    yield tab
    assert {url.removeprefix(server.url).partition("?")[0] for url in tab.requests()} <= {
        *PAGE_FILES, "/card", "/ready", "/v1/completions"
    }  # fmt: skip
    assert [line for line in tab.complaints() if "the server responded with a status of" not in line] == []


def ask(tab: Page, prompt: str, **fields: str) -> None:
    tab.value(OPEN)
    for name, text in fields.items():
        tab.type(f"#{name}", text)
    tab.type("#prompt", prompt)
    tab.press("Enter", 13, control=True)


def test_what_is_typed_is_continued_as_the_model_does(server: Served, opened: Page) -> None:
    ask(opened, "白日依山尽，", max_tokens="24", temperature="0.7", top_p="0.95", top_k="40", repetition_penalty="1.1",
        seed="5", stop_texts="永远不会有的\n\\n\\n\n\\t\\\\n")  # fmt: skip
    opened.until(IDLE)
    parameters = {"temperature": 0.7, "top_p": 0.95, "top_k": 40, "repetition_penalty": 1.1, "seed": 5}
    expected = server.alone("白日依山尽，", max_new_tokens=24, stop=["永远不会有的", "\n\n", "\t\\n"], **parameters)
    assert opened.value("document.querySelector('#given').textContent") == "白日依山尽，"
    assert opened.value("document.querySelector('#written').textContent") == expected
    assert re.search(r"24 tokens · [\d.]+ s · \d+ tokens/s · 种子 5", opened.text("#status"))


def test_text_comes_piece_by_piece_and_stop_ends_it(server: Served, opened: Page) -> None:
    server.pace.seconds = 0.05
    gone = server.outcomes().get("disconnected", 0)
    ask(opened, "春", max_tokens="80", seed="3")
    opened.until("document.querySelector('#written').textContent.length > 2")
    assert opened.value("document.querySelector('#answer').getAttribute('aria-busy')") == "true"
    opened.click("#stop")
    opened.until(IDLE)
    written = opened.value("document.querySelector('#written').textContent")
    server.pace.seconds = 0
    whole = server.alone("春", max_new_tokens=80, seed=3, temperature=0.8, top_p=0.9)
    assert whole.startswith(written)
    assert len(written) < len(whole)
    assert "已停止" in opened.text("#status")
    until(lambda: server.outcomes().get("disconnected", 0) == gone + 1)  # and the server writes on for nobody
    until(lambda: not server.engine.running)


def test_an_example_is_a_click_away_and_the_seed_can_be_used_again(opened: Page) -> None:
    opened.click("#examples button")
    opened.until("document.querySelector('#written').textContent && " + IDLE)
    first, seed = opened.text("#answer"), re.search(r"种子 (\d+)", opened.text("#status"))
    assert first.startswith("白日依山尽，")
    assert seed
    ask(opened, "白日依山尽，", seed=seed[1])
    opened.until("document.querySelector('#status').innerText.includes('tokens/s') && " + IDLE)
    assert opened.text("#answer") == first


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("temperature", "hot", "temperature must be a number, not 'hot'"),
        ("max_tokens", "81", "max_tokens (81) is over 80 (limits.max_new_tokens)"),
        ("max_tokens", "0", "max_tokens (0) must be at least 1"),
        ("top_k", "1.5", "top_k must be a whole number, not 1.5"),
        ("top_k", "-1", "top_k (-1) must be 0 (all tokens) or positive"),
        ("top_p", "2", "top_p (2) must be above 0 and at most 1"),
        ("temperature", "2000", "temperature (2000) must be 0 (greedy) or from 0.001 to 1000"),
        ("repetition_penalty", "0", "repetition_penalty (0) must be from 0.01 to 100 (1: none)"),
        ("seed", "-1", "seed (-1) must be from 0 to 2^63-1"),
        ("stop_texts", "x" * 257, "stop holds a text of 257 characters; there may be 256"),
        ("stop_texts", "x\n" * 17, "stop has 17 texts; there may be 16"),
        ("prompt", "春" * 97, "prompt 0 has 97 characters; this server takes up to 94 tokens"),
    ],
)
def test_a_refusal_is_shown_as_the_server_words_it_and_in_chinese(
    opened: Page, field: str, text: str, message: str
) -> None:
    usual = opened.value(f"document.querySelector('#{field}').value")
    ask(opened, text if field == "prompt" else "春", **({} if field == "prompt" else {field: text}))
    opened.until("!document.querySelector('#error').hidden")
    words = re.sub(r"limits\.\w+|top-[pk]|token|'hot'", "", opened.text("#error"))
    assert not re.search("[a-z]{2}", words)
    opened.click("#language")
    assert opened.text("#error").startswith(f"400 · {message}")
    opened.click("#language")
    opened.type(f"#{field}", usual)
    assert opened.value(f"document.querySelector('#{field}').ariaInvalid") == "true"
    ask(opened, "春", temperature="0.8", max_tokens="4")
    opened.until("document.querySelector('#error').hidden && " + IDLE)


def test_a_busy_server_says_when_to_come_back(server: Served, opened: Page) -> None:
    server.pace.seconds = 0.1
    with httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"prompt": "春", "max_tokens": 80, "stream": True}
        with client.stream("POST", "/v1/completions", json=body), client.stream("POST", "/v1/completions", json=body):
            until(lambda: server.engine.waiting)
            ask(opened, "春", max_tokens="4")
            opened.until("!document.querySelector('#error').hidden")
    assert opened.text("#error") == "503 · 排队的人太多，请稍后再试 · 请 1 秒后再试"
    opened.click("#language")
    assert opened.text("#error") == "503 · too many prompts are waiting; try again later · try again in 1 s"
    opened.click("#language")


def test_a_stream_that_breaks_off_shows_why(server: Served, opened: Page) -> None:
    server.pace.fail = True
    try:
        ask(opened, "春", max_tokens="4")
        opened.until("!document.querySelector('#error').hidden")
    finally:
        server.pace.fail = False
    assert opened.text("#error") == "模型在这个请求上出错了，原因在服务器的日志里"


def test_no_long_word_makes_a_phone_scroll_sideways(server: Served, tab: Page) -> None:
    word = "x" * 300
    facts = server.service.serving[-1].facts
    server.service.serving[-1].facts = facts | {"name": word, "examples": [word], "run": facts["run"] | {"data": word}}
    tab.look(360, 700, mobile=True)
    try:
        tab.open(server.url)
        tab.until("document.querySelectorAll('#examples button').length")
        tab.value("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
        for prompt, field in (("x" * 90, "4"), ("x" * 900, "4"), ("x" * 90, "1" * 14)):
            ask(tab, prompt, max_tokens=field, stop_texts="y" * 200)
            tab.until("document.querySelector('#written').textContent || !document.querySelector('#error').hidden")
            tab.until(IDLE)
            assert tab.value("document.documentElement.scrollWidth") == 360
    finally:
        server.service.serving[-1].facts = facts
        tab.look(1200, 900)


def test_the_text_can_be_copied(server: Served, opened: Page) -> None:
    opened.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    assert opened.value("document.querySelector('#copy').disabled")
    ask(opened, "春", max_tokens="8", seed="1", temperature="0.8")
    opened.until("document.querySelector('#status').innerText.includes('tokens/s')")
    opened.click("#copy")
    opened.until("document.querySelector('#copy').innerText === '已复制'")
    expected = "春" + server.alone("春", max_new_tokens=8, seed=1, temperature=0.8, top_p=0.9)
    assert opened.value("navigator.clipboard.readText()") == expected
    opened.value(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})"
    )  # as without https
    opened.until("document.querySelector('#copy').innerText === '复制'")
    opened.click("#copy")
    opened.until("document.querySelector('#copy').innerText === '已复制'")
    opened.value("delete navigator.clipboard")


def test_the_page_says_when_the_server_is_gone_and_when_it_is_back(tokenizer: Tokenizer, tab: Page) -> None:
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    with served(decoder, tokenizer, name="first") as running:
        url = running.url
        tab.open(url)
        tab.until("document.querySelector('#state').innerText === 'first · 就绪'")
        running.service.state = "draining"
        tab.until("document.querySelector('#state').innerText === '服务器正在停止'")
        seen = tab.requests().count(f"{url}/ready")
        until(lambda: tab.text("#state") and tab.requests().count(f"{url}/ready") > seen + 1)
        assert tab.text("#state") == "服务器正在停止"
    tab.until("document.querySelector('#state').innerText === '服务器没有回应'")
    assert not tab.value("document.querySelector('#state').classList.contains('ready')")
    ask(tab, "春")
    tab.until("document.querySelector('#error').innerText.startsWith('服务器没有回应')")
    with served(decoder, tokenizer, name="second", port=int(url.rpartition(":")[2])):
        tab.until("document.querySelector('#state').innerText === 'second · 就绪'")
        assert tab.value("document.querySelectorAll('#examples button').length") == 3


def test_the_page_asks_for_the_key_and_sends_it(tokenizer: Tokenizer, tab: Page) -> None:
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    with served(decoder, tokenizer, access=Access(key=b"k3y")) as running:
        tab.open(running.url)
        tab.until("!document.querySelector('#lock').hidden")
        assert tab.text("#state").startswith("这台服务器需要 API 密钥")
        tab.type("#key", "wrong")
        tab.click("#lock button")
        tab.until("document.querySelector('#state').innerText.startsWith('API 密钥不对')")
        tab.type("#key", "k3y")
        tab.click("#lock button")
        tab.until("document.querySelector('#lock').hidden")
        for _ in range(2):
            ask(tab, "春", max_tokens="4", seed="1")
            tab.until("document.querySelector('#status').innerText.includes('tokens/s')")
            assert tab.value("document.querySelector('#written').textContent")
            tab.open(running.url)  # the tab remembers it
            tab.until("document.querySelectorAll('#examples button').length")
            assert tab.value("document.querySelector('#lock').hidden")


def test_a_model_with_a_template_is_talked_to_in_turns(tokenizer: Tokenizer, tab: Page) -> None:
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    with served(decoder, tokenizer.with_prompt_template("问：{src_txt}\n")) as running:
        tab.open(running.url)
        tab.until(KNOWN)
        assert tab.value("document.querySelector('#anew').hidden")
        messages: list[dict[str, str]] = []
        for question in ("春", HOSTILE[:20], "花"):
            ask(tab, question, max_tokens="6", seed="1", temperature="0.8")
            tab.until("document.querySelector('#status').innerText.includes('tokens/s') && " + IDLE)
            messages.append({"role": "user", "content": question})
            body = {"messages": messages, "max_tokens": 6, "seed": 1, "temperature": 0.8, "top_p": 0.9}
            said = "[...document.querySelectorAll('#talk p')].map((e) => [e.className, e.textContent])"
            assert tab.value(said) == [[message["role"], message["content"]] for message in messages]
            answer = running.post("/v1/chat/completions", body | {"top_k": 0}).json()["choices"][0]["message"][
                "content"
            ]
            assert tab.value("document.querySelector('#written').textContent") == answer
            messages.append({"role": "assistant", "content": answer})
        ask(tab, "春" * 97)
        tab.until("!document.querySelector('#error').hidden")
        assert tab.text("#error").startswith("400 · 对话有 ")
        assert tab.value("document.querySelector('#prompt').ariaInvalid") == "true"
        tab.click("#anew")
        ask(tab, "春", max_tokens="6")
        tab.until("document.querySelector('#status').innerText.includes('tokens/s') && " + IDLE)
        assert tab.value("document.querySelectorAll('#talk p').length") == 1


def test_text_is_never_html(opened: Page) -> None:
    ask(opened, HOSTILE, max_tokens="4")
    opened.until(IDLE)
    assert opened.value("document.querySelector('#given').textContent") == HOSTILE
    assert opened.value("document.querySelectorAll('main img, main script').length") == 0
    assert not any("/x" in url for url in opened.requests())
    refused = "(() => { try { document.body.innerHTML = '<b>x</b>'; return false; } catch (e) { return e.name; } })()"
    assert opened.value(refused) == "TypeError"  # trusted types: not even by mistake
    opened.events.clear()  # Chromium reports that one in the console


def test_two_languages_of_which_one_is_there(opened: Page) -> None:
    assert opened.text("#write").startswith("续写")
    opened.click("#language")
    assert opened.text("#write").startswith("Write")
    assert opened.value("document.documentElement.lang") == "en"
    opened.value(OPEN)
    names = "[...document.querySelectorAll('input, textarea')].filter((e) => !e.labels[0]?.innerText.trim()).length"
    assert opened.value(names) == 0  # everything that can be filled in has a name
    opened.click("#language")


# --- without a browser ---


def test_nothing_but_the_server_itself_may_be_asked_or_run() -> None:
    folder = ROOT / "modules" / "inference" / "server" / "web"
    for path in folder.iterdir():
        addresses = re.findall(r"(?:https?:)?//[\w.]+\.\w+", path.read_text(encoding="utf-8"))
        assert set(addresses) <= {"http://www.w3.org"}  # SVG's namespace
    assert {name for name, _ in PAGE_FILES.values()} == {path.name for path in folder.iterdir()}


def test_every_file_comes_with_the_policy(server: Served) -> None:
    for path, (_, kind) in PAGE_FILES.items():
        answer = httpx.get(server.url + path)
        policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        assert answer.headers["Content-Type"].startswith(kind)
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_card_says_where_the_model_comes_from(tokenizer: Tokenizer, tmp_path: Path) -> None:
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    run = {
        "run_id": "0123abcd", "git.commit": "f" * 40, "git.dirty": "false", "rows": {"train": 8139},
        "parent": {"init_from": "/home/somebody/outputs/pretrain-1/model"}, "metrics": {"val/loss": 5.25},
        "config": {"data": {"path": "/home/somebody/quatrains"}, "train": {"sample_prompts": ["春"]}},
    }  # fmt: skip
    folder = save_model(tmp_path / "model", decoder, tokenizer, run)
    with served(decoder, tokenizer, run=read_provenance(folder)) as running:
        card = httpx.get(f"{running.url}/card").json()
    assert card["name"] == "small"
    assert card["examples"] == ["春"]
    assert card["run"] == {
        "run_id": "0123abcd", "commit": "f" * 40, "dirty": False, "parent": "pretrain-1", "data": "quatrains",
        "rows": {"train": 8139}, "scores": {"val/loss": 5.25},
    }  # fmt: skip
    assert "somebody" not in json.dumps(card)


def test_the_card_of_a_converted_model_is_that_of_its_training(tokenizer: Tokenizer) -> None:
    run = read_provenance(ROOT / "models" / "poems")
    facts = model_facts("poems", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, LimitsConfig(), run)
    card = facts["run"]
    assert (card["data"], card["parent"], len(card["run_id"]), len(card["commit"])) == ("poems", None, 32, 40)
    assert card["rows"] == {"train": 306_336, "validation": 1_460, "test": 1_573}
    assert 80 < card["scores"]["val/perplexity_per_char"] < 85
    assert facts["examples"] == ["春", "白日依山尽，"]


@pytest.mark.parametrize(
    "run",
    [
        "", "- 1", "a: [", "rows: 5", "metrics: {val/loss: .nan, other: text}", "config: {train: {sample_prompts: 春}}",
        "config: {data: {path: 7}}", "parent: [x]", "run_id: {a: b}", f"x: {'y' * 20_000}",
    ],
)  # fmt: skip
def test_a_run_yaml_that_says_little_costs_the_card_only_that(tokenizer: Tokenizer, tmp_path: Path, run: str) -> None:
    (tmp_path / "run.yaml").write_text(run, encoding="utf-8")
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    facts = model_facts("small", decoder, tokenizer, LimitsConfig(), read_provenance(tmp_path))
    assert json.dumps(facts, allow_nan=False)
    assert facts["examples"]
