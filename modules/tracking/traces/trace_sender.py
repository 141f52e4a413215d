"""A thread that sends served requests and their ratings to MLflow's process, and never holds a request up.

What waits for the store is bounded: beyond it traces are dropped, and counted, and ratings refused. The latest answers
are kept a while whether or not they were drawn for a trace, so that one that is rated gets its trace then.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ...config.generation import ServeConfig
from ...inference.server.model_process.messages import Source
from ...inference.server.records.ratings import Rating
from ...inference.server.records.transcript import AnswerRecord
from ...inference.server.requests import RequestError, bad
from .trace_process import NotTakenError, TraceProcess

logger = logging.getLogger("moyun.tracking")

MOST_WAITING, MOST_KEPT = 1000, 1000
"""Traces and ratings that wait for the store, and answers that can still be rated."""

MOST_CHARACTERS = 8_000_000
"""Of all that wait, and again of all that can be rated."""

MOST_FAILURES = 10
"""Of one thing: a store that takes others, and fails at this one again and again, won't ever take it."""

LONGEST_PAUSE = 15.0
"""Seconds between two tries."""

TELL_SECONDS = 60.0
"""Between two lines in the log that say the same."""


class Store(Protocol):
    """Where traces go. Raises NotTakenError."""

    def send(self, record: AnswerRecord) -> None: ...

    def rate(self, answer_id: str, rating: Rating) -> None: ...


@dataclass(eq=False)
class Answer:
    """One that may be rated, or waits for the store."""

    record: AnswerRecord
    sent: bool = False
    """Whether its trace is in the store."""


@dataclass(eq=False)
class Task:
    """What is to be sent: the trace, if that isn't there yet, and then the rating."""

    answer: Answer
    rating: Rating | None = None
    failures: int = 0
    """Of a store that had taken what came before."""

    @property
    def size(self) -> int:
        return self.answer.record.size + (self.rating.size if self.rating else 0)


@dataclass
class Told:
    """What the log was told last, and what it wasn't told yet."""

    at: float = -TELL_SECONDS
    dropped: int = 0
    refused_at: float = -TELL_SECONDS
    refused: int = 0
    away: bool = False


class TraceSender:
    """A Recorder (inference/server/records): `answered` and `rate` are the event loop's, the rest is the thread's."""

    def __init__(self, store: Store, share: float) -> None:
        """share: of the requests that become traces by themselves."""
        self.store, self.share = store, share
        self.kept: OrderedDict[str, Answer] = OrderedDict()
        self.waiting: deque[Task] = deque()
        self.characters_kept = self.characters_waiting = 0
        self.told = Told()
        self.failures = 0
        self.closing = self.given_up = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.work, name="traces", daemon=True)
        self.thread.start()

    # --- the event loop ---

    def answered(self, record: AnswerRecord) -> None:
        answer = Answer(record)
        with self.changed:
            if random.random() < self.share and not self.put(Task(answer)):
                self.told.dropped += 1
            if record.told:
                self.kept[record.id] = answer
                self.characters_kept += record.size
            while len(self.kept) > MOST_KEPT or self.characters_kept > MOST_CHARACTERS:
                _, oldest = self.kept.popitem(last=False)
                self.characters_kept -= oldest.record.size

    def rate(self, rating: Rating) -> None:
        with self.changed:
            answer = self.kept.get(rating.id)
            if answer is None:
                what = "is none of the latest answers of this server, of which it keeps as many as it has room for"
                raise RequestError(404, f"id {rating.id[:60]!r} {what}", "id", "answer_not_found")
            last = len(answer.record.texts) - 1
            if (rating.index is None and last) or (rating.index or 0) > last:
                raise bad("index", f"must say which of the answer's texts is meant, from 0 to {last}")
            if not self.put(Task(answer, rating)):
                raise RequestError(
                    503, "too many ratings wait for the tracking store; try again later", code="overloaded"
                )

    def put(self, task: Task) -> bool:
        """Whether there was room for it."""
        if len(self.waiting) >= MOST_WAITING or self.characters_waiting + task.size > MOST_CHARACTERS:
            return False
        self.waiting.append(task)
        self.characters_waiting += task.size
        self.changed.notify()
        return True

    # --- the thread ---

    def work(self) -> None:
        while task := self.next():
            try:
                self.send(task)
            except NotTakenError as error:
                task.failures += not self.failures
                self.failed(task, str(error), error.for_good or task.failures >= MOST_FAILURES)
            else:
                self.settled(task)

    def next(self) -> Task | None:
        """What is to be sent now, which stays in the queue until it is; None at the end."""
        with self.changed:
            while not self.waiting and not self.closing:
                self.changed.wait()
            return self.waiting[0] if self.waiting and not self.given_up else None

    def send(self, task: Task) -> None:
        record = task.answer.record
        if not task.answer.sent:
            self.store.send(record)
            task.answer.sent = True
        if task.rating:
            self.store.rate(record.id, task.rating)

    def settled(self, task: Task) -> None:
        if self.told.away:
            logger.warning("traces: the store is back")
        self.failures, self.told.away = 0, False
        self.remove(task)
        self.tell_dropped()

    def failed(self, task: Task, why: str, for_good: bool) -> None:
        if for_good:
            self.remove(task)
            self.tell_refused(task, why)
            return
        self.failures += 1
        if self.failures > 1 and not self.told.away:
            self.told.away = True
            what = "traces: the store is away (%s); requests go on, and up to %d traces and ratings wait for it"
            logger.warning(what, why, MOST_WAITING)
        self.tell_dropped()
        with self.changed:
            self.waiting.rotate(-1)  # of all that waits, one may be what the store fails at
            pause = min(LONGEST_PAUSE, 0.5 * 2.0 ** min(self.failures, 10))
            if self.changed.wait_for(lambda: self.closing, pause) and self.failures > 1:
                self.given_up = True

    def remove(self, task: Task) -> None:
        with self.changed:
            self.waiting.remove(task)
            self.characters_waiting -= task.size

    def tell_refused(self, task: Task, why: str) -> None:
        self.told.refused += 1
        now = time.monotonic()
        if now - self.told.refused_at > TELL_SECONDS:
            what = "traces: the store refuses that of %s: %s (%d since this was said last)"
            logger.warning(what, task.answer.record.id, why, self.told.refused)
            self.told.refused, self.told.refused_at = 0, now

    def tell_dropped(self) -> None:
        now = time.monotonic()
        if self.told.dropped and now - self.told.at > TELL_SECONDS:
            with self.changed:
                dropped, self.told.dropped, self.told.at = self.told.dropped, 0, now
            logger.warning("traces: %d were dropped, as more came than the tracking store takes", dropped)

    def close(self, seconds: float) -> None:
        """Waits so long for what is still to be sent, unless the store is away; says what wasn't."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join(seconds)
        with self.changed:
            self.given_up, left = True, len(self.waiting)
        if left or self.told.dropped:
            what = "traces: %d traces and ratings weren't sent, and %d traces were dropped before"
            logger.warning(what, left, self.told.dropped)


@contextmanager
def sending_traces(config: ServeConfig, source: Source) -> Iterator[tuple[TraceSender, str]]:
    """(what sends traces while a server runs, where to).

    Raises ValueError where the tracking store or the experiment can't be used.
    """
    store = TraceProcess(config, source)
    sender = TraceSender(store, config.traces)
    try:
        yield sender, store.where
    finally:
        sender.close(config.tracking.flush_timeout)
        store.end()
