"""The tracking store itself: whether it is there, what its errors mean, and how long MLflow waits for it.

MLflow waits seconds in general, minutes where much is moved; the user's own choice wins. It reads these from the
environment at each request, so they hold for the whole process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from mlflow.exceptions import MlflowException

from ...system.redaction import first_line, redact_text

logger = logging.getLogger("moyun.tracking")

Answer = TypeVar("Answer")

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


LONGEST_OUTAGE = 3600.0
"""Seconds that a command which has other work at hand waits for a store."""


def until_answered(call: Callable[[], Answer]) -> Answer:
    """Calls again and again while the store is away. Raises what it has against the call, and any error after an hour.

    For calls that may be made twice.
    """
    began, pause = monotonic(), 1.0
    while True:
        try:
            return call()
        except (MlflowException, requests.RequestException, OSError) as error:
            never = is_refusal(error) or getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"
            if never or monotonic() - began > LONGEST_OUTAGE:
                raise
            if pause == 1.0:
                logger.warning("tracking: the store doesn't answer (%s); waiting for it", why(error))
        sleep(pause)
        pause = min(2 * pause, 30.0)


def is_there(uri: str) -> bool:
    """False for an SQLite file that doesn't exist: MLflow makes one merely for being asked."""
    place = uri.removeprefix("sqlite:///").partition("?")[0]
    return not uri.startswith("sqlite:///") or Path(place).exists()


REFUSALS = (413, 422)
"""HTTP statuses of what the store will never take. Other errors may pass, as a login that expired."""

INVALID = "INVALID_PARAMETER_VALUE"
"""The error code that makes a refusal of a 400. Others are no judgement: BAD_REQUEST is what MLflow says for most of
SQLAlchemy's errors, a read-only database's or an exhausted pool's (mlflow/store/db/utils.py)."""

NO_SERVER = "what answers there is no MLflow tracking server"
DAMAGED = "the file is no SQLite database, or damaged"
LOST = "connection lost"

SHORTLY = {
    "Connection refused": "connection refused",
    "timed out": "no answer in time",
    "Failed to resolve": "its host isn't known",
    "too many 5": "it answers with server errors (HTTP 5xx)",
    "Connection aborted": LOST,
    "Connection reset": LOST,
    "read-only transaction": "its database is read-only",
    "readonly database": "the file can't be written",
    "unable to open database file": "the file can't be opened or made",
    "disk I/O error": "its file can't be read or written to the end (a full disk, or a limit as of `ulimit -f`)",
    "disk is full": "its disk is full",
    "database is locked": "another process has locked the file",
    "file is not a database": DAMAGED,
    "disk image is malformed": DAMAGED,
    "QueuePool limit": "its database has no connection left",
    "UNAUTHENTICATED": "it refuses the credentials (HTTP 401)",
    "error code 401": "it refuses the credentials (HTTP 401)",
    "PERMISSION_DENIED": "it refuses this user (HTTP 403)",
    "error code 403": "it refuses this user (HTTP 403)",
    "error code 407": "the proxy refuses the credentials (HTTP 407)",
    "error code 20": NO_SERVER,
    "error code 30": NO_SERVER,
    "error code 404": NO_SERVER,
    "error code 405": NO_SERVER,
    "not in a valid JSON": NO_SERVER,
    "Failed to parse": NO_SERVER,
    "INTERNAL_ERROR: Response": NO_SERVER,
    "WRONG_VERSION_NUMBER": "it doesn't speak HTTPS; write http://",
    "CERTIFICATE_VERIFY_FAILED": "its certificate isn't trusted",
    "in header value": "a name, password or token in the environment holds a control character, as a line end",
    "got unsupported URI": "MLflow knows no store of this scheme",
    "Databricks credential": "Databricks' credentials aren't there",
    "Unity Catalog tracking URI": "Unity Catalog keeps models, not runs; those are in databricks",
}
"""Part of a library's message of several hundred characters → the same in a few words."""

REMEDIES = {
    "HTTP 401": "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; or give",
    "HTTP 403": "Ask its owner for the right, set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or give",
    NO_SERVER: "See to its address, port and path, or name another one with",
    "certificate": "Set MLFLOW_TRACKING_SERVER_CERT_PATH to its authority's certificate, or give",
    "control character": "Take it out of MLFLOW_TRACKING_USERNAME, _PASSWORD or _TOKEN, or give",
    "isn't installed": "Install it, or give",
    "refused": "Start it, or name another one with",
    "no answer": "Start it, or name another one with",
    "full": "Make room, or name another one with",
    "HTTP 5xx": "Start it anew, or name another one with",
    LOST: "Start it anew, or name another one with",
}
"""Part of a reason → what to do, up to the names of the keys."""


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


def explain(error: Exception, uri: str) -> tuple[str, str]:
    """(why the store at `uri` can't be used, what to do) of what it said when it was asked for the first time."""
    if isinstance(error, ModuleNotFoundError):
        reason = f"the Python package {error.name} for its database isn't installed"
    elif isinstance(error, OSError) and error.strerror and error.filename:
        reason = f"{error.filename}: {error.strerror}"
    else:
        reason = why(error)
    remedy = next((remedy for said, remedy in REMEDIES.items() if said in reason), "Name another one with")
    if proxy := proxy_of(uri):
        reason += f", through the proxy {redact_text(proxy)} that the environment names"
        remedy = f"Set NO_PROXY={urlsplit(uri).hostname} to ask it directly, start the proxy, or name another one with"
    return reason, remedy


def proxy_of(uri: str) -> str | None:
    """The proxy that the environment has requests to `uri` go through."""
    if not uri.startswith(("http:", "https:")):
        return None
    return requests.utils.select_proxy(uri, requests.utils.get_environ_proxies(uri))


def why(error: BaseException) -> str:
    """An error in a few words, without secrets."""
    text = str(error)
    return next((short for said, short in SHORTLY.items() if said in text), None) or first_line(error)
