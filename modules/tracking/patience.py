"""How long MLflow waits for a server: seconds in general, minutes where much is moved. The user's own choice wins.

MLflow reads these from the environment at each request, so they hold for the whole process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
BRIEF = {
    TIMEOUT: "10",  # seconds; MLflow's own 120, tried eight times, are 20 minutes a call
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def be_brief() -> None:
    for name, value in BRIEF.items():
        os.environ.setdefault(name, value)


@contextmanager
def patient() -> Iterator[None]:
    """MLflow's own timeout, for models: a server answers when it has stored all of an upload."""
    ours = os.environ.get(TIMEOUT) == BRIEF[TIMEOUT]
    if ours:
        del os.environ[TIMEOUT]
    try:
        yield
    finally:
        if ours:
            os.environ.setdefault(TIMEOUT, BRIEF[TIMEOUT])
