"""The process that has MLflow: it puts traces and ratings into the tracking store, one after the other.

It ends when the server's process has closed its end of the socket, or is gone.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from mlflow import MlflowClient
from mlflow.entities import Assessment, Span, TraceInfo
from mlflow.tracing.client import TracingClient

from ...config.generation import ServeConfig
from ...inference.server.model_process.child import pickled
from ...inference.server.model_process.messages import Failed, messages_of, packed
from ...inference.server.records.ratings import Rating
from ...inference.server.records.transcript import AnswerRecord
from ...system.redaction import redact_text
from ..outbox.store import is_refusal, why
from ..outbox.store_check import require_store
from ..run_selection import experiment_for
from ..stage_run import connected
from .model_links import ModelLinks
from .served_trace import assessments_of, span_of, trace_id_of, trace_of
from .trace_process import NewRating, NewTrace, NotTaken, NotTakenError, Opened, Taken, TraceSetup


class Client(Protocol):
    """What of MLflow's TracingClient is used."""

    def log_spans(self, location: str, spans: list[Span]) -> object: ...

    def start_trace(self, trace_info: TraceInfo) -> object: ...

    def log_assessment(self, trace_id: str, assessment: Assessment) -> object: ...


class TraceStore:
    """A Store (trace_sender.py), one experiment of MLflow's."""

    def __init__(self, client: Client, experiment_id: str, links: ModelLinks) -> None:
        self.client, self.experiment_id, self.links = client, experiment_id, links

    def send(self, record: AnswerRecord) -> None:
        with errors_told():
            self.client.log_spans(self.experiment_id, [span_of(record)])
            self.client.start_trace(trace_of(record, self.experiment_id, *self.links.of(record.model)))

    def rate(self, answer_id: str, rating: Rating) -> None:
        with errors_told():
            for assessment in assessments_of(rating):
                self.client.log_assessment(trace_id_of(answer_id), assessment)


@contextmanager
def errors_told() -> Iterator[None]:
    """NotTakenError for any."""
    try:
        yield
    except Exception as error:
        never = isinstance(error, NotImplementedError)  # a server before MLflow 3.4
        refused = never or is_refusal(error) or getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"
        raise NotTakenError(why(error), refused) from error


@contextmanager
def opened(config: ServeConfig) -> Iterator[tuple[TraceStore, str]]:
    """(the store, what it is in words). Raises ValueError where it, or the experiment, can't be used."""
    with connected(config.tracking) as uri:
        require_store(uri)
        experiment_id = str(experiment_for(config.tracking))
        experiment = MlflowClient().get_experiment(experiment_id).name
        store = TraceStore(TracingClient(uri), experiment_id, ModelLinks(config.model))
        yield store, f"experiment {experiment} of {redact_text(uri)}"


def answer_to(message: NewTrace | NewRating, store: TraceStore) -> Taken | NotTaken:
    try:
        if isinstance(message, NewTrace):
            store.send(message.record)
        else:
            store.rate(message.answer_id, message.rating)
    except NotTakenError as error:
        return NotTaken(str(error), error.for_good)
    return Taken()


def main(descriptor: str) -> None:
    connection = socket.socket(fileno=int(descriptor))

    def tell(message: Any) -> None:
        with suppress(OSError):  # nobody is there any more, as the loop will find too
            connection.sendall(packed(message))

    received = messages_of(connection)
    setup = next(received, None)
    if isinstance(setup, TraceSetup):
        try:
            setup.source.settle()
            with opened(setup.config) as (store, where):
                tell(Opened(where))
                for message in received:
                    tell(answer_to(message, store))
        except Exception as error:
            tell(Failed(pickled(error), str(error)))
    os._exit(0)  # a thread of MLflow's may hang, and nobody waits for it


if __name__ == "__main__":
    main(*sys.argv[1:])
