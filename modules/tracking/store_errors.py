"""What an error of the tracking store means: it is away, or it will never take this."""

from __future__ import annotations

import requests
from mlflow.exceptions import MlflowException

from ..redaction import first_line

REFUSALS = (400, 413, 422)
"""HTTP statuses of what the store will never take. Others may pass: a login that expired, a run that isn't there."""
SHORTLY = {
    "Connection refused": "connection refused",
    "timed out": "no answer in time",
    "Failed to resolve": "its host isn't known",
    "too many 5": "it answers with server errors (HTTP 5xx)",
    "Connection aborted": "connection lost",
    "Connection reset": "connection lost",
}
"""What libraries say in several hundred characters."""


def is_refusal(error: Exception) -> bool:
    """Whether the store answered that it will never take this; otherwise it is away."""
    if isinstance(error, MlflowException):
        return error.get_http_status_code() in REFUSALS
    if isinstance(error, requests.RequestException):
        return error.response is not None and error.response.status_code in REFUSALS
    return isinstance(error, (ValueError, TypeError, KeyError, AttributeError))


def why(error: BaseException) -> str:
    """In a few words, without secrets."""
    text = str(error)
    return next((short for said, short in SHORTLY.items() if said in text), None) or first_line(error)
