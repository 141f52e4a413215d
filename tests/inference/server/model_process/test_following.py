"""The server follows an alias: another version takes over between requests, or nothing changes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.checkpoint.loading import load_verified
from modules.config.loader import load_config
from modules.inference.server.lifecycle import Lifecycle
from modules.inference.server.model_process import supervisor
from modules.inference.text_generator import TextGenerator
from modules.tokenizer.tokenizer import Tokenizer, train_tokenizer
from tests.helpers.model_sources import Alias
from tests.helpers.models import make_config, make_decoder, save_model
from tests.helpers.server_tools import model_processes, until

pytestmark = pytest.mark.server

BODY: dict[str, Any] = {"prompt": "春眠", "max_tokens": 30, "temperature": 0.0}
ROOM = {"max_position_embeddings": 300}


@pytest.fixture
def registry(tmp_path: Path, tokenizer: Tokenizer, poems: dict[str, list[str]]) -> Alias:
    """Version 2 has another vocabulary, a prompt template and fewer positions."""
    save_model(tmp_path / "1", make_decoder(make_config(tokenizer.vocab_size, **ROOM)), tokenizer, {"run_id": "a1"})
    other = train_tokenizer(poems["test"]).with_prompt_template("问：{src_txt}\n")
    decoder = make_decoder(make_config(other.vocab_size, max_position_embeddings=150), seed=5)
    save_model(tmp_path / "2", decoder, other, {"run_id": "b2"})
    alias = Alias(tmp_path)
    alias.move("1")
    return alias


def text_of(folder: Path) -> str:
    generator = TextGenerator(*load_verified(folder))
    text: str = generator("春眠", return_full_text=False, max_new_tokens=30, temperature=0.0)["text"]
    return text


def while_serving(source: Alias, work: Callable[[str], None], *arguments: str) -> None:
    """Serves, looking at the alias all the time, until `work` is done, whose errors are raised."""
    config = load_config("serve", ["port=0", "follow_seconds=0.05", "limits.max_new_tokens=200", *arguments])
    server = Lifecycle(config, source, "poet")
    errors: list[BaseException] = []

    def run() -> None:
        try:
            until(lambda: httpx.get(f"{server.address}/ready").status_code == 200)
            work(server.address)
        except BaseException as error:
            errors.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    worker = threading.Thread(target=run)
    worker.start()
    server.run(lambda model: None)
    worker.join()
    if errors:
        raise errors[0]


def version_of(url: str) -> str:
    version: str = httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["version"]
    return version


def test_a_version_takes_over_without_a_request_refused_or_cut(
    registry: Alias, caplog: pytest.LogCaptureFixture
) -> None:
    expected = {version: text_of(registry.registry / version) for version in ("1", "2")}
    assert expected["1"] != expected["2"]
    answers: list[httpx.Response] = []
    done = threading.Event()

    def ask_all_the_time(url: str) -> None:
        with httpx.Client(timeout=60) as client:
            while not done.is_set():
                answers.append(client.post(f"{url}/v1/completions", json=BODY))

    def work(url: str) -> None:
        asking = [threading.Thread(target=ask_all_the_time, args=(url,)) for _ in range(3)]
        for thread in asking:
            thread.start()
        try:
            until(lambda: len(answers) > 5)
            registry.move("2")
            until(lambda: version_of(url) == "2")
            count = len(answers)
            until(lambda: len(answers) > count + 5)
            registry.move("1")
            until(lambda: version_of(url) == "1")
            facts = httpx.get(f"{url}/card").json()
            assert (facts["version"], facts["run"]["run_id"]) == ("1", "a1")
            assert httpx.get(f"{url}/v1/models/poet").json()["run_id"] == "a1"
            until(lambda: len(model_processes()) == 1)
        finally:
            done.set()
            for thread in asking:
                thread.join()

    while_serving(registry, work)
    assert not caplog.records
    assert {answer.status_code for answer in answers} == {200}
    texts = [answer.json()["choices"][0]["text"] for answer in answers]
    assert set(texts) == set(expected.values())  # none is of one version's tokens in the other's characters


def test_a_text_that_one_version_has_begun_is_ended_by_it_and_the_limits_are_the_new_ones(
    registry: Alias, caplog: pytest.LogCaptureFixture
) -> None:
    def work(url: str) -> None:
        card = httpx.get(f"{url}/card").json()
        assert (card["architecture"]["max_position_embeddings"], card["answers_alone"]) == (300, False)
        body = BODY | {"max_tokens": 200, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            registry.move("2")
            until(lambda: version_of(url) == "2")
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        until(lambda: len(model_processes()) == 1)
        card = httpx.get(f"{url}/card").json()
        assert (card["architecture"]["max_position_embeddings"], card["answers_alone"]) == (150, True)
        refused = httpx.post(f"{url}/v1/completions", json=BODY | {"prompt": [1] * 200})
        assert "takes up to 149 tokens" in refused.json()["error"]["message"]

    while_serving(registry, work)
    assert not caplog.records  # the end of the old one is no death


def test_a_version_that_cannot_be_served_changes_nothing_until_it_can(
    registry: Alias, caplog: pytest.LogCaptureFixture
) -> None:
    weights = registry.registry / "2" / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1000] + bytes([sound[-1000] ^ 1]) + sound[-999:])

    def lines() -> list[str]:
        return [record.message for record in caplog.records if record.name == supervisor.__name__]

    def work(url: str) -> None:
        registry.move("2")
        until(lines)
        time.sleep(1)  # twenty looks at the alias
        assert version_of(url) == "1"
        assert httpx.post(f"{url}/v1/completions", json=BODY, timeout=60).status_code == 200
        weights.write_bytes(sound)  # the alias stays where it is
        until(lambda: version_of(url) == "2")

    while_serving(registry, work)
    (line,) = lines()
    assert line.startswith("version 2 isn't served: ")
    assert line.endswith("differs from what was saved; copy the folder again; going on with version 1")


def test_a_registry_that_is_away_is_told_of_once(registry: Alias, caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> list[str]:
        return [record.message for record in caplog.records if record.name == supervisor.__name__]

    def work(url: str) -> None:
        (registry.registry / "alias").rename(registry.registry / "away")
        until(lines)
        time.sleep(0.5)
        assert httpx.post(f"{url}/v1/completions", json=BODY, timeout=60).status_code == 200
        (registry.registry / "away").rename(registry.registry / "alias")
        registry.move("2")
        until(lambda: version_of(url) == "2")

    while_serving(registry, work)
    (line,) = lines()
    assert line.startswith("no newer version can be found: ")
    assert line.endswith("going on with version 1")


def test_a_child_that_dies_comes_back_with_the_version_that_it_had(registry: Alias) -> None:
    """Although the alias now names one that can't be served."""
    (registry.registry / "2" / "model.yaml").unlink()

    def work(url: str) -> None:
        registry.move("2")
        (child,) = model_processes()
        time.sleep(0.5)
        child.kill()
        until(lambda: httpx.get(f"{url}/ready").status_code == 503)
        until(lambda: httpx.get(f"{url}/ready").status_code == 200)
        assert version_of(url) == "1"

    while_serving(registry, work)


def test_a_child_that_dies_comes_back_while_the_registry_is_away(registry: Alias) -> None:
    def work(url: str) -> None:
        (registry.registry / "alias").rename(registry.registry / "away")
        (child,) = model_processes()
        child.kill()
        until(lambda: httpx.get(f"{url}/ready").status_code == 503)
        until(lambda: httpx.get(f"{url}/ready").status_code == 200)
        assert version_of(url) == "1"

    while_serving(registry, work)


def test_there_are_never_more_than_two_models_and_one_that_hangs_is_ended(registry: Alias) -> None:
    """However fast the alias moves: texts of the first are under way, and it writes none of them."""
    counts: list[int] = []

    def work(url: str) -> None:
        (first,) = model_processes()
        registry.move("2")
        until(lambda: len(model_processes()) == 2)
        body = BODY | {"max_tokens": 200, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            first.suspend()
            until(lambda: version_of(url) == "2")
            registry.move("1")
            until(lambda: counts.append(len(model_processes())) or version_of(url) == "1")
            assert "limits.request_seconds" in "".join(lines)
        until(lambda: len(model_processes()) == 1)
        assert not first.is_running()

    while_serving(registry, work, "limits.request_seconds=3")
    assert max(counts) == 2
