"""Continuous batching: one thread owns the decoder and writes all texts in one batch that rows join and leave.

Between two tokens the batch may change: ended rows have left it, waiting prompts are read (prefill) and join the
cache of those that run (Yu et al. 2022, Orca, "iteration-level scheduling"). What a row becomes is
sampling.write's business and depends on its prompt, parameters and seed alone.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from ...config.generation import GenerationConfig, LimitsConfig
from ...model.decoder import Decoder
from ...model.decoding.constraints import Constraint
from ...model.decoding.token_scores import Scores, TokenScore
from ...model.sampling import Batch, Rows, open_batch, prefill, start, write
from ...system.hardware import give_freed_memory_back
from ...tokenizer.tokenizer import Tokenizer
from ..text_generator import Writer
from .prometheus import Metrics

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 2048
"""The most prompt tokens read between two tokens of the running rows, which wait; one prompt may have more."""

FinishReason = Literal["stop", "length", "failed", "stopped"]
"""stop, length: as OpenAI has them; failed: the model did; stopped: the row was cancelled, or the engine stops."""


@dataclass(frozen=True)
class Event:
    """A piece of a sequence's text, or its end."""

    row: int
    """Which prompt of its request."""
    text: str
    finish: FinishReason | None = None
    """Why the text ended; None where it goes on."""
    scores: Sequence[TokenScore] = ()
    """Of its tokens, and before them of the prompt's, where they are wanted. Tokens whose text is still held back, as
    it may begin a stop text, are among them."""


@dataclass(eq=False)
class ActiveSequence:
    """One prompt on its way to a text. Made by the event loop, then the engine's thread's alone but for `cancelled`."""

    row: int
    prompt: list[int]
    config: GenerationConfig
    writer: Writer
    stream: bool
    """Whether pieces are wanted as they come; otherwise the whole text at its end."""
    deliver: Callable[[Event], None]
    """Called on the event loop."""
    arrived: float = field(default_factory=time.monotonic)
    tokens: int = 0
    """Written so far."""
    pieces: list[str] = field(default_factory=list)
    """What was written and not yet handed over."""
    scores: Scores | None = None
    """Where log-probabilities are wanted; what it holds was not yet handed over."""
    constraint: Constraint | None = None
    """What the text is held to."""
    cancelled: bool = False
    """Set from any thread: whoever asked has gone or waited too long."""

    def event(self, finish: FinishReason | None = None) -> Event:
        """All that was not yet handed over."""
        return Event(self.row, "".join(self.pieces), finish, tuple(self.scores.found) if self.scores else ())


Outbox = dict[ActiveSequence, Event]
"""Sequence → what was written of it since the event loop was last told."""


class QueueFullError(Exception):
    """Batch and queue are full."""


class Engine:
    """Writes all sequences in one batch, in its own thread; `submit` and `cancel` may be called from any."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        limits: LimitsConfig,
        metrics: Metrics,
        post: Callable[[Callable[[Outbox], None], Outbox], object],
    ) -> None:
        """post: calls a function with its argument on the event loop, e.g. loop.call_soon_threadsafe."""
        self.decoder, self.tokenizer, self.limits, self.metrics, self.post = decoder, tokenizer, limits, metrics, post
        self.waiting: deque[ActiveSequence] = deque()
        self.running: dict[int, ActiveSequence] = {}
        self.starting = 0
        """Sequences that have left `waiting` and aren't in `running` yet."""
        self.changed = threading.Condition()
        self.stopping = False
        self.numbers = itertools.count()
        self.outbox: Outbox = {}
        self.delivered = True
        """Whether the event loop has taken what it was handed last."""
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    # --- any thread ---

    def has_room(self, rows: int = 1) -> bool:
        """Whether there are free places in batch and queue for so many."""
        with self.changed:  # or a row that leaves the queue at this moment is counted twice
            taken = len(self.waiting) + self.starting + len(self.running)
        return taken + rows <= self.limits.batch_rows + self.limits.queue_rows

    def submit(self, sequences: Sequence[ActiveSequence]) -> None:
        """Raises QueueFullError where there is no room for all of them."""
        with self.changed:
            if self.stopping or not self.has_room(len(sequences)):
                raise QueueFullError
            self.waiting.extend(sequences)
            self.changed.notify()

    def cancel(self, sequences: Sequence[ActiveSequence]) -> None:
        """Running rows end with the token that is being computed, waiting ones leave the queue at once."""
        with self.changed:
            for sequence in sequences:
                sequence.cancelled = True
                if sequence in self.waiting:
                    self.waiting.remove(sequence)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Ends every row and the thread."""
        with self.changed:
            self.stopping = True
            for sequence in [*self.waiting, *self.running.values()]:
                sequence.cancelled = True
            self.post(self.deliver, {sequence: Event(sequence.row, "", "stopped") for sequence in self.waiting})
            self.waiting.clear()
            self.changed.notify()
        if self.thread.ident:
            self.thread.join()

    # --- the engine's own thread ---

    @torch.no_grad()
    def run(self) -> None:
        while sequences := self.next_sequences(self.limits.batch_rows, wait=True):
            try:
                self.write_batch(sequences)
            except Exception:  # of these rows nothing can be saved; the next must not suffer for it
                logger.exception("the model failed on a batch of %d rows", len(self.running))
                self.outbox |= {sequence: Event(sequence.row, "", "failed") for sequence in self.running.values()}
            self.running.clear()
            self.post(self.deliver, self.outbox)
            self.outbox = {}
            if not self.waiting:
                give_freed_memory_back()  # each batch has other shapes, and malloc would keep the gaps between them

    def next_sequences(self, places: int, wait: bool = False) -> list[ActiveSequence]:
        """Waiting sequences to start now; with `wait` there is at least one, or the engine stops."""
        sequences: list[ActiveSequence] = []
        tokens = 0
        with self.changed:
            while wait and not self.waiting and not self.stopping:
                self.changed.wait()
            while self.waiting and len(sequences) < places:
                tokens += len(self.waiting[0].prompt)
                if sequences and tokens > PREFILL_TOKENS:
                    break
                sequences.append(self.waiting.popleft())
            self.starting = len(sequences)
        return sequences

    def write_batch(self, sequences: list[ActiveSequence]) -> None:
        """Writes these and all that join them meanwhile, until no row is left."""
        rows = self.begin(sequences)
        if not rows.ids:
            return
        batch = open_batch(self.decoder, self.tokenizer.end_of_text_id, self.limits.batch_rows)
        batch.join(rows)
        tokens = write(batch, partial(self.advance, batch))
        reply: int | None = None
        while True:
            try:
                number, token = tokens.send(reply)
            except StopIteration:
                return
            reply = number if self.take(number, token) else None

    def begin(self, sequences: list[ActiveSequence]) -> Rows:
        """Rows of sequences that run from now on, but for those that end here: only their prompts are scored."""
        begun = {next(self.numbers): sequence for sequence in sequences}
        with self.changed:
            self.running.update(begun)
            self.starting = 0
        if scored := [number for number, sequence in begun.items() if not sequence.config.max_new_tokens]:
            if any(begun[n].scores for n in scored):
                prefill(self.decoder, [begun[n].prompt for n in scored], None, [begun[n].scores for n in scored])
            for number in scored:
                self.take(number, None)
                del begun[number]
        left = begun.values()
        prompts, configs = [sequence.prompt for sequence in left], [sequence.config for sequence in left]
        scores, constraints = [sequence.scores for sequence in left], [sequence.constraint for sequence in left]
        rows = start(self.decoder, prompts, configs, scores, constraints)
        rows.numbers = list(begun)
        return rows

    def advance(self, batch: Batch, left: list[int]) -> None:
        """sampling.write's `advance`: goes on with the rows left, and takes in those that join them."""
        self.flush()
        batch.advance(left)
        sequences = self.next_sequences(self.limits.batch_rows - len(left))
        if sequences and (rows := self.begin(sequences)).ids:
            batch.join(rows)

    def take(self, number: int, token: int | None) -> bool:
        """Takes a token of a row, or its end (None); returns whether the row is to end here."""
        sequence = self.running[number]
        if token is None:
            del self.running[number]
            sequence.pieces.append(sequence.writer.flush())
            finish = finish_of(sequence, self.decoder.config.max_position_embeddings)
            self.outbox[sequence] = sequence.event(finish)
            return False
        sequence.tokens += 1
        self.metrics.generated_tokens.inc()
        if sequence.tokens == 1:
            self.metrics.first_token_seconds.observe(time.monotonic() - sequence.arrived)
        if sequence.cancelled:
            return True
        if text := sequence.writer.push(token):
            sequence.pieces.append(text)
        if sequence.stream and (text or sequence.scores):
            self.outbox[sequence] = sequence.event()
        return sequence.writer.stopped

    def flush(self) -> None:
        """Posts what was written since the last time, unless the event loop hasn't taken that yet.

        While the loop is behind, pieces gather: a stream then gets several tokens at once, and the loop catches up.
        """
        if self.outbox and self.delivered:
            for sequence in self.outbox:
                sequence.pieces.clear()
                if sequence.scores:
                    sequence.scores.found.clear()
            self.delivered = False
            self.post(self.deliver, self.outbox)
            self.outbox = {}

    def deliver(self, outbox: Outbox) -> None:
        """On the event loop."""
        for sequence, event in outbox.items():
            sequence.deliver(event)
        self.delivered = True


def finish_of(sequence: ActiveSequence, positions: int) -> FinishReason:
    """Why a sequence ended; length: it had all its tokens; stop: it ended by itself or at a stop text."""
    if sequence.cancelled:
        return "stopped"
    most = min(sequence.config.max_new_tokens, positions - len(sequence.prompt))
    given_up = sequence.constraint is not None and sequence.constraint.given_up
    return "length" if (sequence.tokens == most or given_up) and not sequence.writer.stopped else "stop"
