"""Who is answered: names in Host, the API key, and methods."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from modules.config.loader import ConfigError, load_config
from modules.inference.server.access import Access, ApiKeys, access_of, read_key
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder, save_model
from tests.helpers.server_tools import Served, process, served

KEY = "c4n4ry-k3y"
OPEN = ("/health", "/ready", "/ping", "/", "/page.js", "/page.css", "/icon.svg")
TEXT = ("/v1/completions", "/v1/chat/completions", "/invocations")


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Served]:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer) as running:
        yield running


@pytest.fixture(scope="module")
def locked(tokenizer: Tokenizer) -> Iterator[Served]:
    with served(make_decoder(make_config(tokenizer.vocab_size)), tokenizer, access=Access(key=KEY.encode())) as running:
        yield running


def message_of(answer: httpx.Response) -> str:
    content = answer.json()
    message: str = content["error"]["message"] if "error" in content else content["message"]
    assert "\n" not in message
    return message


def may_come(asked: str, address: str = "127.0.0.1", **config: Any) -> bool:
    """Whether a server that listens there answers to what is asked for as Host."""
    arguments = [f"{name}={value}" for name, value in config.items()]
    access = access_of(load_config("serve", arguments), address, None)
    return access.problem([(b"host", asked.encode("latin-1"))], is_open=True) is None


# --- names ---


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "localhost.:80", "[::1]:8000"]
)
def test_this_machines_own_names_are_known(host: str) -> None:
    assert may_come(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "10.0.0.5", "localhost:80:80",
             "a@localhost", "localhost/", "127.0.0.1, evil.example", "\xe9", "[::1", "*"],
)  # fmt: skip
def test_others_are_not(host: str) -> None:
    assert not may_come(host)


def test_names_that_are_given_are_known_too() -> None:
    config = {
        "allowed_hosts": "[poems.example.org,'2001:db8::1',[2001:db8::2]]".replace("[2001:db8::2]", "'[2001:db8::2]'")
    }
    for host in ("poems.example.org", "Poems.Example.org:443", "[2001:db8::1]:8000", "[2001:db8::2]", "localhost"):
        assert may_come(host, **config)
    assert not may_come("a.poems.example.org", **config)
    assert all(may_come("anything.example", allowed_hosts=given) for given in ('["*"]', "[*]", "[ * ]"))


def test_the_address_that_it_listens_on_is_known_and_on_every_network_any_address() -> None:
    assert may_come("mybox:8000", "10.0.0.5", host="mybox")
    assert may_come("10.0.0.5:8000", "10.0.0.5", host="mybox")
    assert not may_come("10.0.0.6:8000", "10.0.0.5", host="mybox")
    for listening in ("0.0.0.0", "::"):
        for host in ("10.0.0.6:8000", "[2001:db8::1]:80", "0.0.0.0:8000", "localhost"):
            assert may_come(host, listening, host=listening)
        assert not may_come("evil.example", listening, host=listening)


@pytest.mark.parametrize(
    "hosts", ["['*',a]", "[http://a]", "[a:80]", "['']", "[a b]", "[诗.example]", "[a/b]", "['*.a.org']"]
)
def test_what_is_no_name_is_refused_before_it_starts(hosts: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed_hosts has '.*': give names or addresses"):
        load_config("serve", [f"allowed_hosts={hosts}"])


@pytest.mark.server
@pytest.mark.parametrize("path", [*OPEN, "/card", "/metrics", "/v1/models", "/nowhere", *TEXT])
def test_every_endpoint_looks_at_the_name(server: Served, path: str) -> None:
    answer = httpx.request("POST" if path in TEXT else "GET", server.url + path, headers={"Host": "evil.example:80"})
    assert answer.status_code == 421
    assert message_of(answer).startswith(
        "Host 'evil.example:80' isn't a name of this server; names beside its address are"
    )
    assert "allowed_hosts=[NAME]" in message_of(answer)


# --- the key ---


@pytest.mark.server
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/small", "/card", "/metrics", "/nowhere", *TEXT])
@pytest.mark.parametrize(
    "given", [None, "", "Bearer", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \xe9"]
)
def test_without_the_key_nothing_is_told(locked: Served, path: str, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    method = "POST" if path in TEXT else "GET"
    passes = locked.pace.passes
    answer = httpx.request(
        method, locked.url + path, headers=headers, json={"prompt": "春"} if method == "POST" else None
    )
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "Authorization: Bearer KEY" in message_of(answer)
    assert KEY[:-1] not in answer.text
    assert locked.pace.passes == passes


@pytest.mark.server
def test_with_the_key_everything_is(locked: Served) -> None:
    client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEY, max_retries=0)
    assert client.models.list().data[0].id == "small"
    assert client.completions.create(model="small", prompt="春", max_tokens=3, seed=1).choices[0].text
    for path in ("/card", "/metrics"):
        assert httpx.get(locked.url + path, headers={"Authorization": f"bearer {KEY}"}).status_code == 200
    with pytest.raises(openai.AuthenticationError, match="this API key isn't the server's"):
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key="other", max_retries=0).models.list()


@pytest.mark.server
@pytest.mark.parametrize("path", OPEN)
def test_probes_and_the_page_need_no_key(locked: Served, path: str) -> None:
    assert httpx.get(locked.url + path).status_code == 200


@pytest.mark.parametrize("key", ["", "with space", "line\n", "密钥", "tab\t"])
def test_a_key_that_nobody_could_send_is_refused(key: str) -> None:
    with pytest.raises(
        ValueError, match="MOYUN_API_KEY .* can't be an API key; unset it to serve without one"
    ) as caught:
        read_key({"MOYUN_API_KEY": key})
    assert not key or key not in str(caught.value)


def test_the_key_is_read_from_the_environment_alone() -> None:
    assert read_key({"MOYUN_API_KEY": KEY}) == KEY.encode()
    assert read_key({}) is None
    with pytest.raises(
        ConfigError, match="api_key .*: no such key; give it in the environment, as MOYUN_API_KEY"
    ) as caught:
        load_config("serve", [f"api_key={KEY}"])
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ("alice=KEY1,bob=KEY2", {"alice": b"KEY1", "bob": b"KEY2"}),
        ("alice=KEY1", {"alice": b"KEY1"}),
        ("a.b-c_1=x=y==,b=z", {"a.b-c_1": b"x=y==", "b": b"z"}),
        ("Zm9vYmFy", b"Zm9vYmFy"),
        ("Zm9vYg==", b"Zm9vYg=="),
        ("a:b/c+d-e_f", b"a:b/c+d-e_f"),
    ],
)
def test_one_key_or_several_with_names(given: str, keys: ApiKeys) -> None:
    assert read_key({"MOYUN_API_KEY": given}) == keys


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("alice=S3CR3T1,", "part 2 of 2 (by commas) isn't NAME=KEY"),
        ("S3CR3T1,S3CR3T2", "part 1 of 2 (by commas) isn't NAME=KEY"),
        ("alice=S3CR3T1,S3CR3T2", "part 2 of 2 (by commas) isn't NAME=KEY"),
        ("alice=S3CR3T1,S3CR3T2==", "part 2 of 2 (by commas) isn't NAME=KEY"),
        ("=S3CR3T1", "part 1 of 1 (by commas) isn't NAME=KEY"),
        ("alice=S3CR3T1,bob=", "part 2 of 2 (by commas) isn't NAME=KEY"),
        ("a!=S3CR3T1,bob=S3CR3T2", "part 1 of 2 (by commas) isn't NAME=KEY"),
        ("===", "part 1 of 1 (by commas) isn't NAME=KEY"),
        ("alice=S3CR3T1,alice=S3CR3T2", "part 2 of 2 (by commas) has the name of an earlier one"),
        ("alice=S3CR3T1,bob=S3CR3T1", "part 2 of 2 (by commas) has the key of an earlier one"),
    ],
)
def test_keys_that_can_be_read_in_two_ways_are_refused_without_telling_them(given: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"MOYUN_API_KEY: {re.escape(problem)}") as refused:
        read_key({"MOYUN_API_KEY": given})
    assert "S3CR3T" not in str(refused.value)


def test_each_named_key_opens_and_tells_its_name() -> None:
    access = Access(key={"alice": b"one", "bob": b"two"})
    for sent, name in (("one", "alice"), ("two", "bob"), ("three", None), ("", None), ("alice=one", None)):
        headers = [(b"Authorization", f"Bearer {sent}".encode())]
        assert access.asker(headers) == name
        assert (access.problem(headers, is_open=False) is None) == (name is not None)
    assert Access(key=b"one").asker([(b"authorization", b"bearer one")]) == ""
    assert Access().asker([(b"authorization", b"bearer one")]) is None


def test_two_keys_in_a_request_open_nothing() -> None:
    access = Access(key={"alice": b"one"})
    headers = [(b"authorization", b"Bearer one"), (b"authorization", b"Bearer one")]
    problem = access.problem(headers, is_open=False)
    assert problem
    assert (problem.status, access.asker(headers)) == (401, None)


@pytest.mark.server
@pytest.mark.parametrize("key", [None, KEY])
def test_the_start_line_says_whether_a_key_is_asked_for_and_nothing_says_which(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv("MOYUN_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("MOYUN_API_KEY", key)
    folder = save_model(tmp_path / "model", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})
    with process(folder, tmp_path / "log", "host=0.0.0.0", "name=poet") as started:
        assert started.stdout
        lines = [next(started.stdout) for _ in range(3)]
        port = re.search(r"0\.0\.0\.0:(\d+)", lines[0])
        assert port
        status = httpx.get(f"http://127.0.0.1:{port[1]}/v1/models", headers={"Authorization": "Bearer x"}).status_code
        started.terminate()
        lines.append(started.stdout.read())
    said = "".join(lines)
    assert ("is ready with the API key of MOYUN_API_KEY" in said, status) == (bool(key), 401 if key else 200)
    assert ("is ready without an API key" in said) == (not key)
    assert "by its IP address (by a name, if allowed_hosts has it)" in lines[0]
    assert KEY not in said + (tmp_path / "log").read_text()


# --- methods ---


@pytest.mark.server
def test_a_wrong_method_is_told_which_there_are(server: Served) -> None:
    for path in (*OPEN, "/card", "/metrics", "/v1/models", "/v1/models/small", *TEXT):
        right = {"POST"} if path in TEXT else {"GET", "HEAD"}
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
            if method in right:
                continue
            answer = httpx.request(method, server.url + path)
            assert (answer.status_code, set(answer.headers["Allow"].split(", "))) == (405, right), (method, path)


@pytest.mark.server
def test_a_wrong_method_is_told_so_while_the_server_is_loading_too(server: Served) -> None:
    server.service.state = "loading"
    try:
        for path in TEXT:
            answer = httpx.get(server.url + path)
            assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
        assert httpx.head(f"{server.url}/health").status_code == 200
        assert httpx.head(f"{server.url}/ready").status_code == 503
    finally:
        server.service.state = "ready"
