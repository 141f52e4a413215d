"""What an error of the tracking store means: it is away, or it will never take this."""

from __future__ import annotations

import requests
from mlflow.exceptions import MlflowException

from ..redaction import first_line

REFUSALS = (413, 422)
"""HTTP statuses of what the store will never take. Others may pass: a login that expired, a run that isn't there."""
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
"""What libraries say in several hundred characters."""


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
    """In a few words, without secrets."""
    text = str(error)
    return next((short for said, short in SHORTLY.items() if said in text), None) or first_line(error)
