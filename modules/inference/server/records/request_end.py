"""What is noted when a request for text has ended: in the metrics, and by the recorder."""

from __future__ import annotations

from starlette.types import Scope

from ..prometheus import Metrics
from ..request_handle import RequestHandle
from .ratings import Recorder

ASKER, HANDLE = "moyun.asker", "moyun.handle"
"""Keys of the ASGI scope: the name of the API key, and the RequestHandle of a request that was accepted."""


def note_end(
    scope: Scope, endpoint: str, outcome: str, seconds: float, metrics: Metrics, recorder: Recorder | None
) -> None:
    handle: RequestHandle | None = scope.get(HANDLE)
    metrics.ended(endpoint, outcome, scope.get(ASKER), seconds)
    if handle and recorder:
        recorder.answered(handle.transcript.ended(endpoint, outcome, seconds, handle.tokens))
