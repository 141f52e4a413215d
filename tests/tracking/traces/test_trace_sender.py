"""Traces leave a server without holding it up: outages, floods, a store that refuses, ratings of any recent answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from mlflow.entities import Assessment, Feedback, Span, TraceInfo
from mlflow.exceptions import MlflowException

from modules.config.generation import GenerationConfig
from modules.inference.server.records.ratings import Rating
from modules.inference.server.requests import RequestError
from modules.tracking.traces import trace_sender
from modules.tracking.traces.model_links import Links
from modules.tracking.traces.trace_sender import TraceSender
from modules.tracking.traces.trace_store import TraceStore
from tests.helpers.served_records import answer_record
from tests.helpers.server_tools import until

AWAY = MlflowException("Connection refused")
REFUSED = MlflowException("the experiment must be active", error_code=1000)


class Shelf:
    """A tracking store: what it was sent, in order; it may be away, refuse, or hang."""

    def __init__(self) -> None:
        self.traces: list[TraceInfo] = []
        self.spans: list[Span] = []
        self.assessments: list[tuple[str, Assessment]] = []
        self.problem: Exception | None = None
        self.cursed = "nothing"
        """Part of the id of a trace that it always fails at."""
        self.open = threading.Event()
        self.open.set()
        self.calls = 0

    def ask(self, trace_id: str = "") -> None:
        self.calls += 1
        self.open.wait(60)
        if self.problem:
            raise self.problem
        if self.cursed in trace_id:
            raise AWAY

    def log_spans(self, location: str, spans: list[Span]) -> None:
        self.ask(spans[0].trace_id)
        self.spans += spans

    def start_trace(self, trace_info: TraceInfo) -> None:
        self.ask(trace_info.trace_id)
        self.traces.append(trace_info)

    def log_assessment(self, trace_id: str, assessment: Assessment) -> None:
        self.ask(trace_id)
        self.assessments.append((trace_id, assessment))

    @property
    def ids(self) -> list[str | None]:
        return [trace.client_request_id for trace in self.traces]


class NoLinks:
    def of(self, card: Any) -> Links:
        return None, None


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    yield (made := Shelf())
    made.open.set()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_sender, "LONGEST_PAUSE", 0.01)


def sender_to(shelf: Shelf, share: float = 1.0) -> TraceSender:
    return TraceSender(TraceStore(shelf, "7", NoLinks()), share)  # type: ignore[arg-type]


def test_what_is_answered_is_sent_in_order_and_all_of_it_before_the_end(shelf: Shelf) -> None:
    sender = sender_to(shelf)
    records = [answer_record() for _ in range(20)]
    for record in records:
        sender.answered(record)
    sender.close(60)
    assert shelf.ids == [record.id for record in records]
    assert [span.trace_id for span in shelf.spans] == [trace.trace_id for trace in shelf.traces]


def test_about_the_wanted_share_is_sent(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([0.3, 0.1, 0.9, 0.24, 0.25])
    monkeypatch.setattr(trace_sender.random, "random", lambda: next(drawn))
    sender = sender_to(shelf, 0.25)
    records = [answer_record() for _ in range(5)]
    for record in records:
        sender.answered(record)
    sender.close(60)
    assert shelf.ids == [records[1].id, records[3].id]


def test_an_answer_that_was_not_drawn_gets_its_trace_when_it_is_rated(shelf: Shelf) -> None:
    sender = sender_to(shelf, share=1e-12)
    first, second = answer_record(), answer_record()
    sender.answered(first)
    sender.answered(second)
    sender.rate(Rating(second.id, "down", "韵", "春眠"))
    sender.rate(Rating(second.id, "up"))
    sender.close(60)
    assert shelf.ids == [second.id]
    assert {trace_id for trace_id, _ in shelf.assessments} == {shelf.traces[0].trace_id}
    found = [(a.name, (a.feedback or a.expectation).value, a.rationale) for _, a in shelf.assessments]  # type: ignore[union-attr]
    assert found == [("user_feedback", False, "韵"), ("expected_response", "春眠", None), ("user_feedback", True, None)]


def test_an_answer_that_is_not_known_cannot_be_rated(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_sender, "MOST_KEPT", 2)
    sender = sender_to(shelf)
    records = [answer_record() for _ in range(3)]
    for record in records:
        sender.answered(record)
    with pytest.raises(RequestError, match="is none of the latest answers") as refused:
        sender.rate(Rating(records[0].id, "up"))
    assert (refused.value.status, refused.value.field) == (404, "id")
    sender.rate(Rating(records[1].id, "up"))
    sender.close(60)
    assert len(shelf.assessments) == 1


def test_long_answers_are_kept_by_their_characters(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_sender, "MOST_CHARACTERS", 100)
    sender = sender_to(shelf, share=1e-12)
    long, short = answer_record(texts=["长" * 90]), answer_record(texts=["短" * 20])
    for record in (long, short):
        sender.answered(record)
    assert list(sender.kept) == [short.id]
    sender.close(60)


@pytest.mark.parametrize(
    "config",
    [GenerationConfig(json_schema="{" * 200), GenerationConfig(stop=["停" * 101]), GenerationConfig(regex="." * 101)],
)
def test_what_a_text_was_held_to_counts_too(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, config: GenerationConfig
) -> None:
    monkeypatch.setattr(trace_sender, "MOST_CHARACTERS", 100)
    sender = sender_to(shelf)
    record = answer_record()
    sender.answered(replace(record, request=replace(record.request, config=config)))
    assert (len(sender.kept), len(sender.waiting), sender.told.dropped) == (0, 0, 1)
    sender.close(60)


@pytest.mark.parametrize("index", [None, 2, 5])
def test_which_of_several_texts_is_rated_has_to_be_said(shelf: Shelf, index: int | None) -> None:
    sender = sender_to(shelf)
    record = answer_record(texts=["一", "二"])
    sender.answered(record)
    with pytest.raises(RequestError, match="from 0 to 1") as refused:
        sender.rate(Rating(record.id, "up", index=index))
    assert (refused.value.status, refused.value.field) == (400, "index")
    sender.rate(Rating(record.id, "up", index=1))
    sender.close(60)
    assert [assessment.metadata for _, assessment in shelf.assessments] == [{"index": "1"}]


def test_while_the_store_is_away_requests_go_on_and_afterwards_new_traces_go_through(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trace_sender, "MOST_WAITING", 3)
    shelf.problem = AWAY
    sender = sender_to(shelf)
    records = [answer_record() for _ in range(5)]
    with caplog.at_level(logging.WARNING, logger="moyun.tracking"):
        for record in records:
            sender.answered(record)
        with pytest.raises(RequestError) as refused:
            sender.rate(Rating(records[0].id, "up"))
        until(lambda: shelf.calls > 3)
        assert len(sender.waiting) == 3
        shelf.problem = None
        until(lambda: not sender.waiting)
        sender.answered(later := answer_record())
        sender.close(60)
    assert refused.value.status == 503
    assert sorted(map(str, shelf.ids)) == sorted(record.id for record in [*records[:3], later])
    said = "\n".join(caplog.messages)
    assert "the store is away (connection refused)" in said
    assert "the store is back" in said
    assert "2 were dropped" in said


def test_a_store_that_hangs_holds_nobody_up(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_sender, "MOST_WAITING", 2)
    shelf.open.clear()
    sender = sender_to(shelf)
    for _ in range(50):
        sender.answered(answer_record())
    assert (len(sender.waiting), sender.told.dropped) == (2, 48)
    sender.close(0.01)


def test_what_the_store_refuses_is_said_and_the_rest_goes_on(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    shelf.problem = REFUSED
    sender = sender_to(shelf)
    with caplog.at_level(logging.WARNING, logger="moyun.tracking"):
        sender.answered(first := answer_record())
        for _ in range(20):
            sender.answered(answer_record())
        until(lambda: not sender.waiting)
        shelf.problem = None
        sender.answered(second := answer_record())
        sender.close(60)
    assert shelf.ids == [second.id]
    (said,) = [message for message in caplog.messages if "refuses" in message]
    assert said.startswith(f"traces: the store refuses that of {first.id}: the experiment must be active (1 since")


def test_one_that_the_store_always_fails_at_keeps_no_other_from_it(shelf: Shelf) -> None:
    bad, *good = [answer_record() for _ in range(30)]
    shelf.cursed = bad.id[-32:]
    sender = sender_to(shelf)
    for record in (bad, *good):
        sender.answered(record)
    sender.close(60)
    assert sorted(map(str, shelf.ids)) == sorted(record.id for record in good)


def test_at_the_end_a_store_that_is_away_is_not_waited_for(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    shelf.problem = AWAY
    sender = sender_to(shelf)
    sender.answered(answer_record())
    until(lambda: shelf.calls)
    with caplog.at_level(logging.WARNING, logger="moyun.tracking"):
        sender.close(3600)
    assert not sender.thread.is_alive()
    assert "1 traces and ratings weren't sent" in caplog.text


def test_a_trace_holds_nothing_of_an_api_key(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOYUN_API_KEY", "alice=al1ce-k3y,bob=b0b-k3y")
    sender = sender_to(shelf)
    record = answer_record(prompts=["我的 b0b-k3y 是"], texts=["al1ce-k3y"])
    sender.answered(record)
    sender.rate(Rating(record.id, "up", "b0b-k3y", "al1ce-k3y!"))
    sender.close(60)
    texts = [
        str(shelf.spans[0].to_dict()),
        str(shelf.traces[0].to_dict()),
        str([a.to_dictionary() for _, a in shelf.assessments]),
    ]
    assert all("(redacted)" in text and "k3y" not in text for text in texts)


def test_a_secret_of_digits_leaves_numbers_as_they_are(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOOR_PASSWORD", "1234")
    sender = sender_to(shelf)
    sender.answered(answer_record(prompts=[[1234, 5]], texts=["门是 1234 号"]))
    sender.close(60)
    (span,) = shelf.spans
    assert span.inputs == {"prompt": [1234, 5]}
    assert span.outputs["choices"][0]["text"] == "门是 (redacted) 号"


def test_feedback_is_a_persons(shelf: Shelf) -> None:
    sender = sender_to(shelf)
    sender.answered(record := answer_record())
    sender.rate(Rating(record.id, "up"))
    sender.close(60)
    ((_, feedback),) = shelf.assessments
    assert isinstance(feedback, Feedback)
    assert feedback.source.source_type == "HUMAN"
