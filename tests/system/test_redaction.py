"""What the environment holds that is secret is found in every form that a library gives it."""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from modules.system.redaction import first_line, hide_values, redact_text
from pipelines.cli.redacted_output import RedactedRecord
from tests.helpers.models import ROOT

SECRET = "c4n4ry/+ö\"p'&w 1%"
FORMS = {
    "plain": SECRET,
    "percent": quote(SECRET),
    "percent, slash too": quote(SECRET, safe=""),
    "lower-case percent": quote(SECRET, safe="").lower(),
    "form": quote_plus(SECRET),
    "repr": repr(SECRET),
    "repr of a header": repr({"Authorization": f"Bearer {SECRET}\n"}),
    "json": json.dumps(SECRET),
    "json, as it is": json.dumps(SECRET, ensure_ascii=False),
    "repr beside quotes": repr(f"it's \"{SECRET}"),
    "repr of a repr": repr([repr({"a": SECRET})]),
    "html": html.escape(SECRET),
    "bytes": repr(SECRET.encode()),
    "basic": base64.b64encode(f"me:{SECRET}".encode()).decode(),
    "basic of another": base64.b64encode(f"somebody:{SECRET}".encode()).decode(),
    "urlsafe": base64.urlsafe_b64encode(f"x:{SECRET}".encode()).decode(),
}


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "SESSION_COOKIE"])
@pytest.mark.parametrize("form", FORMS)
def test_a_secret_of_the_environment_is_found_in_any_form(
    monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    monkeypatch.setenv(name, f"  {SECRET}\n")
    found = redact_text(f"a {FORMS[form]} b")
    assert found.startswith("a ")
    assert found.endswith(" b")
    assert "(redacted)" in found
    for part in ("c4n4ry", base64.b64encode(b"xyzc4n4ry").decode()[4:11]):
        assert part not in found


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=8, max_size=30), st.integers(0, 5))
def test_the_base64_of_a_secret_is_found_wherever_it_begins(secret: str, before: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_TOKEN", secret)
        if len(secret.strip()) < 8 or secret != secret.strip():
            return
        text = base64.b64encode(b"u" * before + secret.encode()).decode()
        assert "(redacted)" in hide_values(text)


def test_what_a_url_of_the_environment_holds_is_a_secret_elsewhere_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE", "postgresql://me:p%40ss-c4n4ry@host/db")
    monkeypatch.setenv("https_proxy", "http://c4n4ry-user:pr0xy-c4n4ry@proxy:3128")
    for text in ("password p@ss-c4n4ry refused", "p%40ss-c4n4ry", "CONNECT with pr0xy-c4n4ry", "user c4n4ry-user:x"):
        assert "c4n4ry" not in redact_text(text).replace("c4n4ry-user:x", "")


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Basic bWU6YzRuNHJ5", "{'Authorization': 'Bearer c4n4ry.c4n4ry'}", "sent Bearer c4n4ryc4n4ry",
        "you sent Basic bWU6YzRuNHJ5bWU6YzRuNHJ5Cg==", "sent BEARER c4n4ryc4n4ry", "sent token c4n4ryc4n4ry==",
        "Cookie: session=c4n4ry; other=c4n4ry", "host=x password=c4n4ry user=me", "connect password='c4n 4ry' to",
        "https://x.blob/y?sig=c4n4ry", "https://s3/y?X-Amz-Signature=c4n4ry&a=1", "id AKIAC4N4RYC4N4RYC4N4 of",
        "hf_c4n4ryc4n4ryc4n4ryc4n4ry", "ghp_c4n4ryc4n4ryc4n4ryc4n4ry",
    ],
)  # fmt: skip
def test_a_secret_is_known_by_its_place(text: str) -> None:
    found = redact_text(text)
    assert "(redacted)" in found
    for part in ("c4n4ry", "4ry", "bWU6", "C4N4RY"):
        assert part not in found


@pytest.mark.parametrize("user", ["m", "me", "you"])
def test_nothing_is_left_of_the_end_of_a_secrets_base64(monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    for name, value in {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": "c4n4ry-of-mine"}.items():
        monkeypatch.setenv(name, value)
    sent = base64.b64encode(f"{user}:c4n4ry-of-mine".encode()).decode()
    assert redact_text(f"you sent Basic {sent}, no") == "you sent Basic (redacted), no"
    assert hide_values(f"it was {sent}, no").endswith("(redacted), no")
    assert hide_values(f"it was {sent.replace('=', ' =')}, no").endswith("(redacted), no")


def test_words_after_a_scheme_stay() -> None:
    text = "a basic configuration, the token embeddings, token 21128000, a bearer certificate, token_embedding"
    assert redact_text(text) == text


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false", "SOME_TOKEN": "true", "HF_TOKEN_PATH": "/home/me/token", "MY_SECRET": "",
        "A_PASSWORD": "poem", "X_TOKEN": "ab",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    text = "poems, false, true, /home/me/token, ab, token=5 tokens; basic configuration"
    assert hide_values(text) == text
    assert hide_values("the poem") == "the (redacted)"


def test_a_token_with_a_line_end_is_not_repeated_by_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "c4n4ry-token\n")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Exception, match="c4n4ry") as caught:
        MlflowClient("http://127.0.0.1:9").search_experiments()
    assert "c4n4ry" not in first_line(caught.value)
    with pytest.raises(requests.exceptions.InvalidHeader, match="c4n4ry") as header:
        requests.get("http://127.0.0.1:9", headers={"Authorization": f"Bearer {os.environ['MLFLOW_TRACKING_TOKEN']}"})
    assert "c4n4ry" not in redact_text("".join(traceback.format_exception(header.value)))


SAYS = """
import logging, sys, warnings
late = logging.StreamHandler()  # of before: it holds the stream itself
from pipelines.cli.command_line import run_stage
def stage(config):
    logging.getLogger("library").addHandler(late)
    logging.getLogger("library").warning("Bearer %s", "c4n4ry-token\\n")
    try:
        raise KeyError("c4n4ry-token")
    except KeyError:
        logging.getLogger("library").exception("with c4n4ry-token")
    warnings.warn("c4n4ry-token")
    print("c4n4ry-token"); print(["c4n4ry-token"], file=sys.stderr)
    import threading
    thread = threading.Thread(target=lambda: 1 / 0 if not "c4n4ry-token" else [][int("c4n4ry-token")])
    thread.start(); thread.join()
    raise RuntimeError("c4n4ry-token") from ValueError(b"c4n4ry-token")
run_stage("sync", stage, [])
"""


def test_nothing_that_a_command_says_holds_a_secret_whoever_says_it(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_TOKEN": "c4n4ry-token\n"}
    script = tmp_path / "script.py"
    script.write_text(SAYS)
    # Without lines of source, in which the test itself writes the canary.
    command = "import sys; exec(compile(open(sys.argv.pop(1)).read(), '<said>', 'exec'))"
    done = subprocess.run(
        [sys.executable, "-c", command, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert "c4n4ry" not in said
    assert said.count("(redacted)") >= 8, said
    assert done.returncode == 1


def test_a_record_keeps_what_a_formatter_wants_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.cli.redacted_output import RedactedRecord

    monkeypatch.setenv("MY_TOKEN", "c4n4ry-token")
    record = RedactedRecord(
        "uvicorn.access", logging.INFO, "", 0, '%s - "%s" %d', ("1.2.3.4", "/?c4n4ry-token", 200), None
    )
    assert record.args == ("1.2.3.4", "/?(redacted)", 200)
    assert record.getMessage() == '1.2.3.4 - "/?(redacted)" 200'


def test_each_of_several_keys_in_one_variable_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOYUN_API_KEY", "alice=al1ce-k3y,bob=b0b-k3y==")
    assert redact_text("sent al1ce-k3y, then b0b-k3y==; alice and bob") == (
        "sent (redacted), then (redacted); alice and bob"
    )


def test_a_name_before_a_host_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://root@10.0.0.1")
    monkeypatch.setenv("GIT_CREDENTIAL_HELPER", "cache")
    assert hide_values("/root/data/cache") == "/root/data/cache"
    monkeypatch.setenv("OTHER", "https://root:canary77@host")
    assert hide_values("canary77") == "(redacted)"


def test_values_given_by_name_are_redacted_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary77")
    record = RedactedRecord("name", logging.INFO, "", 1, "%(a)s", ({"a": "canary77"},), None)
    assert record.getMessage() == "(redacted)"
