"""MLflow in a process of its own, which keeps traces and ratings: the server's process has neither the memory that it
takes nor the work. This is the server's side, without MLflow; trace_store.py is the other one.
"""

from __future__ import annotations

import pickle
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...config.generation import ServeConfig
from ...inference.server.model_process.messages import Failed, Source, messages_of, packed
from ...inference.server.model_process.python_process import start_python
from ...inference.server.records.ratings import Rating
from ...inference.server.records.transcript import AnswerRecord

CHILD = "modules.tracking.traces.trace_store"


@dataclass(frozen=True)
class TraceSetup:
    """The first message."""

    config: ServeConfig
    source: Source
    """The model's, which also knows how a process of moyun's is prepared."""


class Opened(NamedTuple):
    """The store can be used."""

    where: str
    """Its experiment, in words."""


class NewTrace(NamedTuple):
    record: AnswerRecord


class NewRating(NamedTuple):
    answer_id: str
    rating: Rating


class Taken(NamedTuple):
    """The store has it."""


class NotTaken(NamedTuple):
    why: str
    for_good: bool


class NotTakenError(Exception):
    """The store hasn't taken something; the message says why."""

    def __init__(self, why: str, for_good: bool = False) -> None:
        """for_good: it never will."""
        super().__init__(why)
        self.for_good = for_good


class TraceProcess:
    """A Store (trace_sender.py) that waits for what its process says; one that has died is started again."""

    def __init__(self, config: ServeConfig, source: Source) -> None:
        """Raises ValueError where the tracking store or the experiment can't be used."""
        self.setup = TraceSetup(config, source)
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.where = self.start()
        except NotTakenError as error:
            raise ValueError(
                f"traces: {error} as it began; what it said last stands above. traces=0 serves without them"
            ) from None

    def start(self) -> str:
        """Where traces go, in words."""
        self.connection, theirs = socket.socketpair()
        self.process = start_python(CHILD, theirs)
        self.answers = messages_of(self.connection)
        answer = self.ask(self.setup)
        if isinstance(answer, Failed):
            self.end()
            raise pickle.loads(answer.error)
        assert isinstance(answer, Opened)
        return answer.where

    def ask(self, message: Any) -> Any:
        """Raises NotTakenError where the process has died."""
        with suppress(OSError):  # nor will it answer then
            self.connection.sendall(packed(message))
        if (answer := next(self.answers, None)) is None:
            self.end()
            raise NotTakenError("the process that sends them has died")
        return answer

    def take(self, message: NewTrace | NewRating) -> None:
        if self.process is None:
            try:
                self.start()
            except Exception as error:
                raise NotTakenError(" ".join(str(error).split())) from error
        answer = self.ask(message)
        if isinstance(answer, NotTaken):
            raise NotTakenError(*answer)

    def send(self, record: AnswerRecord) -> None:
        self.take(NewTrace(record))

    def rate(self, answer_id: str, rating: Rating) -> None:
        self.take(NewRating(answer_id, rating))

    def end(self) -> None:
        """At once: all that it had taken is in the store."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.connection.close()
