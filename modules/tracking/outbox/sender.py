"""A thread that sends a run's local log to the store while the stage works, and tries again while the store is away."""

from __future__ import annotations

import logging
import random
import threading
import time

from .delivery import Delivery
from .store import why

logger = logging.getLogger("moyun.tracking")

INTERVAL = 5.0
"""Seconds between looks at what is new, so that the UI stays alive."""

SHARE = 0.04
"""The share of the time that the sender may compute while the stage works: the two share Python's lock."""

LONGEST_PAUSE = 15.0
"""Seconds between two tries, at most."""

SILENCE = 10.0
"""Seconds that an outage may last before a warning is logged."""


class Sender:
    """The thread that calls a Delivery's `step` until it is stopped."""

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.spool = delivery.spool
        self.reason = ""
        """Why the last try failed; empty after one that didn't."""
        self.failures = 0
        self.away_since: float | None = None
        self.spoken = False
        self.progress_at = 0.0
        self.waited = 0.0
        """Seconds that log_model and end have waited in vain since the store last took something."""
        self.hurried = False
        self.stopped = False
        self.wake = threading.Event()
        self.thread = threading.Thread(target=self.work, name="tracking", daemon=True)  # never holds up the exit

    def work(self) -> None:
        """Sends in rounds: what is logged during one waits for the next, so that there are few calls."""
        until = self.spool.written
        while not self.stopped:
            began, more = time.thread_time(), False
            try:
                if more := self.delivery.step():
                    self.succeeded()
            except Exception as error:
                self.failed(error)
            if more and (self.hurried or self.spool.sent < until):
                self.wake.wait(self.rest(time.thread_time() - began))
            else:
                self.wake.wait(self.pause())
                until = self.spool.written
            self.wake.clear()

    def rest(self, computed: float) -> float:
        """Seconds to wait after a call that computed for `computed` seconds; none while a flush waits."""
        return 0.0 if self.hurried else min(LONGEST_PAUSE, computed * (1 / SHARE - 1))

    def pause(self) -> float:
        """Seconds until the next try: longer after each failure, and never in step with other runs."""
        if not self.failures:
            return INTERVAL
        longest = 1.0 if self.hurried else LONGEST_PAUSE
        return min(longest, 0.5 * 2.0 ** min(self.failures, 10)) * random.uniform(0.5, 1)

    def succeeded(self) -> None:
        if self.spoken:
            logger.warning("tracking: the store is back")
        self.failures, self.away_since, self.spoken, self.reason = 0, None, False, ""
        self.waited = 0.0
        self.progress_at = time.monotonic()

    def failed(self, error: Exception) -> None:
        now = time.monotonic()
        self.failures += 1
        self.reason = why(error)
        self.away_since = self.away_since or now
        if not self.spoken and not self.stopped and now - self.away_since >= SILENCE:
            self.spoken = True
            logger.warning(
                "tracking: the store doesn't take what the run logs (%s); work goes on, it is kept in %s and sent "
                "when the store is back",
                self.reason,
                self.spool.folder,
            )

    def flush(self, seconds: float, longest: float = float("inf")) -> bool:
        """Waits until everything is sent; returns whether it was.

        Args:
            seconds: How long to wait for a store that takes nothing. Earlier waits count, so that a dead store costs a
                run this time once.
            longest: How long to wait in all.
        """
        started = time.monotonic()
        self.hurried = True
        self.wake.set()
        while self.spool.behind and self.thread.is_alive():
            now = time.monotonic()
            quiet = now - max(started, self.progress_at)
            given_up = self.waited + quiet > seconds and not self.delivery.sending_model
            if given_up or now - started > longest:
                self.waited += quiet
                break
            time.sleep(0.01)
        self.hurried = False
        return not self.spool.behind

    def stop(self) -> None:
        """Ends the thread after the call that it is in, without noting what that call has sent."""
        self.stopped = True
        self.wake.set()
