"""The tracking store itself: whether it is there, what its errors mean, and how long MLflow waits for it.

MLflow waits seconds in general, minutes where much is moved; the user's own choice wins. It reads these from the
environment at each request, so they hold for the whole process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ...system.redaction import first_line, redact_text

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"

BRIEF = {
    TIMEOUT: "10",  # seconds; MLflow's own 120, tried eight times, are 20 minutes a call
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def be_brief() -> None:
    """Shortens MLflow's timeouts, where the user hasn't set them."""
    for name, value in BRIEF.items():
        os.environ.setdefault(name, value)


@contextmanager
def patient() -> Iterator[None]:
    """MLflow's own timeout within the block, for models: a server answers only when it has stored a whole upload."""
    ours = os.environ.get(TIMEOUT) == BRIEF[TIMEOUT]
    if ours:
        del os.environ[TIMEOUT]
    try:
        yield
    finally:
        if ours:
            os.environ.setdefault(TIMEOUT, BRIEF[TIMEOUT])


def require_store(uri: str, seconds: float = 10.0) -> None:
    """Raises ValueError if the tracking store doesn't answer within `seconds`, whatever hangs."""
    be_brief()
    failure: list[BaseException] = []
    asking = threading.Thread(target=ask, args=(uri, failure), daemon=True)
    asking.start()
    asking.join(seconds)
    if not asking.is_alive() and not failure:
        return
    reason = why(failure[0]) if failure else f"no answer within {seconds:g} s"
    raise ValueError(
        f"the tracking store {redact_text(uri)} can't be used: {reason}. Start it, or name another one with "
        "tracking.tracking_uri=… or MLFLOW_TRACKING_URI (sqlite:///mlflow.db is a file that needs no server)"
    )


def ask(uri: str, failure: list[BaseException]) -> None:
    try:
        if uri.startswith(("http:", "https:")):
            MlflowClient(uri).search_experiments(max_results=1)
        elif "sql" in uri.partition(":")[0]:  # MLflow itself would try for minutes
            place = uri.removeprefix("sqlite:///")
            if place == uri or Path(place).parent.is_dir():  # MLflow makes the folder
                sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect().close()
    except Exception as error:
        failure.append(error)


def is_there(uri: str) -> bool:
    """False for an SQLite file that doesn't exist: MLflow makes one merely for being asked."""
    place = uri.removeprefix("sqlite:///").partition("?")[0]
    return not uri.startswith("sqlite:///") or Path(place).exists()


REFUSALS = (413, 422)
"""HTTP statuses of what the store will never take. Other errors may pass, as a login that expired."""

INVALID = "INVALID_PARAMETER_VALUE"
"""The error code that makes a refusal of a 400. Others are no judgement: BAD_REQUEST is what MLflow says for most of
SQLAlchemy's errors, a read-only database's or an exhausted pool's (mlflow/store/db/utils.py)."""

SHORTLY = {
    "Connection refused": "connection refused",
    "timed out": "no answer in time",
    "Failed to resolve": "its host isn't known",
    "too many 5": "it answers with server errors (HTTP 5xx)",
    "Connection aborted": "connection lost",
    "Connection reset": "connection lost",
    "read-only transaction": "its database is read-only",
    "QueuePool limit": "its database has no connection left",
}
"""Part of a library's message of several hundred characters → the same in a few words."""


def is_refusal(error: Exception) -> bool:
    """Whether the store answered that it will never take this; otherwise it is away."""
    if isinstance(error, MlflowException):
        return error.error_code == INVALID or error.get_http_status_code() in REFUSALS
    if isinstance(error, requests.RequestException):
        return error.response is not None and (error.response.status_code in REFUSALS or says_invalid(error.response))
    return isinstance(error, (ValueError, TypeError, KeyError, AttributeError))


def says_invalid(response: requests.Response) -> bool:
    try:
        return bool(response.json()["error_code"] == INVALID)
    except (ValueError, TypeError, KeyError):  # a proxy's page
        return False


def why(error: BaseException) -> str:
    """An error in a few words, without secrets."""
    text = str(error)
    return next((short for said, short in SHORTLY.items() if said in text), None) or first_line(error)
