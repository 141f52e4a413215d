"""Continuous batching: one thread owns the decoder and writes all texts in one batch that rows join and leave.

Between two tokens the batch may change: ended rows have left it, waiting prompts are read (prefill) and join the
cache of those that run (Yu et al. 2022, Orca, "iteration-level scheduling"). What a row becomes is
sampling.write's business and depends on its prompt, parameters and seed alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from ...config.generation import GenerationConfig, LimitsConfig
from ...model.decoder import Decoder
from ...model.decoding.batch_rows import Rows, start
from ...model.decoding.constraints import Constraint
from ...model.decoding.prefix_cache import PrefixCache, usual_room
from ...model.decoding.token_scores import Scores, before_wanted
from ...model.sampling import Batch, open_batch, prefill, write
from ...system.hardware import give_freed_memory_back
from ...tokenizer.tokenizer import Tokenizer
from ..text_generator import Writer
from .model_process.messages import Event, FinishReason

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 2048
"""The most prompt tokens read between two tokens of the running rows, which wait; one prompt may have more."""

COUNT_SECONDS = 1.0
"""The longest that the number of tokens is kept to oneself."""


@dataclass(eq=False)
class ActiveSequence:
    """One prompt on its way to a text. The engine's thread's alone but for `cancelled`."""

    number: int
    """Its own, among all that the engine is given."""
    prompt: list[int]
    config: GenerationConfig
    writer: Writer
    stream: bool
    """Whether pieces are wanted as they come; otherwise the first and all the rest."""
    tokens: int = 0
    """Written so far."""
    cached: int = 0
    """Tokens of the prompt that were kept from earlier ones and aren't read again."""
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
        scores = tuple(self.scores.found) if self.scores else ()
        return Event(self.number, "".join(self.pieces), finish, scores, self.tokens, self.writer.stopped, self.cached)


class Engine:
    """Writes all sequences in one batch, in its own thread; `submit` and `cancel` may be called from any."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        limits: LimitsConfig,
        post: Callable[[list[Event]], object],
        heard: Callable[[], bool] = lambda: True,
    ) -> None:
        """What it works with.

        Args:
            post: Is told what was written, also that `tokens` have become more and nothing else.
            heard: Whether what was posted has been read. Otherwise pieces gather: a stream then gets several tokens at
                once, and whoever reads catches up.
        """
        self.decoder, self.tokenizer, self.limits, self.post, self.heard = decoder, tokenizer, limits, post, heard
        self.prefixes = PrefixCache(usual_room(decoder) if limits.prefix_tokens is None else limits.prefix_tokens)
        self.waiting: deque[ActiveSequence] = deque()
        self.running: dict[int, ActiveSequence] = {}
        self.tokens = 0
        """Written so far, of all sequences."""
        self.changed = threading.Condition()
        self.stopping = False
        self.outbox: dict[ActiveSequence, FinishReason | None] = {}
        """Sequences of which there is something to tell, and why they ended if they have."""
        self.posted = time.monotonic()
        self.prompt_tokens = 0
        """Read since the running rows' last token."""
        self.stops: dict[int, bool] = {}
        """Of sequences whose first token was taken before its turn: whether the row is to end there."""
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    # --- any thread ---

    def submit(self, sequences: Sequence[ActiveSequence]) -> None:
        """How many there may be is for whoever submits them to say."""
        with self.changed:
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
            self.post([sequence.event("stopped") for sequence in self.waiting])
            self.waiting.clear()
            self.changed.notify()
        if self.thread.ident:
            self.thread.join()

    # --- the engine's own thread ---

    @torch.no_grad()
    def run(self) -> None:
        while sequences := self.next_sequences(wait=True):
            try:
                self.write_batch(sequences)
            except Exception:  # of these rows nothing can be saved; the next must not suffer for it
                logger.exception("the model failed on a batch of %d rows", len(self.running))
                self.outbox |= dict.fromkeys(self.running.values(), "failed")
            self.running.clear()
            self.stops.clear()
            self.prompt_tokens = 0
            self.hand_over()
            if not self.waiting:
                give_freed_memory_back()  # each batch has other shapes, and malloc would keep the gaps between them

    def next_sequences(self, wait: bool = False) -> list[ActiveSequence]:
        """Waiting sequences to start now; with `wait` there is at least one, or the engine stops."""
        sequences: list[ActiveSequence] = []
        with self.changed:
            while wait and not self.waiting and not self.stopping:
                self.changed.wait()
            while self.waiting and len(self.running) + len(sequences) < self.limits.batch_rows:
                tokens = self.prompt_tokens + len(self.waiting[0].prompt)
                if self.prompt_tokens and tokens > PREFILL_TOKENS:
                    break
                self.prompt_tokens = tokens
                sequences.append(self.waiting.popleft())
        return sequences

    def write_batch(self, sequences: list[ActiveSequence]) -> None:
        """Writes these and all that join them meanwhile, until no row is left."""
        batch = open_batch(self.decoder, self.tokenizer.end_of_text_id, self.limits.batch_rows, self.prefixes)
        self.join(batch, sequences)
        self.take_in(batch)  # of requests that came together, all but the first came meanwhile
        if not self.running:
            return
        tokens = write(batch, partial(self.advance, batch))
        reply: int | None = None
        while True:
            try:
                number, token = tokens.send(reply)
            except StopIteration:
                return
            stops = self.stops.pop(number) if number in self.stops else self.take(number, token)
            reply = number if stops else None

    def begin(self, sequences: list[ActiveSequence]) -> Rows:
        """Rows of sequences that run from now on, but for those that end here: only their prompts are scored."""
        begun = {sequence.number: sequence for sequence in sequences}
        with self.changed:
            self.running.update(begun)
        self.outbox |= dict.fromkeys(sequences)
        self.flush()
        if scored := [number for number, sequence in begun.items() if not sequence.config.max_new_tokens]:
            if any(begun[n].scores for n in scored):
                prefill(self.decoder, [begun[n].prompt for n in scored], None, [begun[n].scores for n in scored])
            for number in scored:
                self.take(number, None)
                del begun[number]
        left = begun.values()
        for sequence in left:
            sequence.cached = self.prefixes.length_of(sequence.prompt, before_wanted(sequence.prompt, sequence.scores))
        prompts, configs = [sequence.prompt for sequence in left], [sequence.config for sequence in left]
        scores, constraints = [sequence.scores for sequence in left], [sequence.constraint for sequence in left]
        rows = start(self.decoder, prompts, configs, scores, constraints)
        rows.numbers = list(begun)
        return rows

    def advance(self, batch: Batch, left: list[int]) -> None:
        """sampling.write's `advance`: goes on with the rows left, and takes in those that join them."""
        self.flush()
        self.prompt_tokens = 0
        batch.advance(left, partial(self.take_in, batch, once=True))
        self.take_in(batch)

    def take_in(self, batch: Batch, once: bool = False) -> None:
        """Has waiting sequences join those that run, where there are places.

        once: only if none has joined since the last token. A prompt that comes in the midst of a step is read at once,
        as most of its time to the first token would else be waiting; but each pass makes the running rows wait.
        """
        if self.waiting and not (once and self.prompt_tokens) and (sequences := self.next_sequences()):
            self.join(batch, sequences)

    def join(self, batch: Batch, sequences: list[ActiveSequence]) -> None:
        """Begins them; one at which the model fails doesn't fail the others, nor the rows that run."""
        try:
            rows = self.begin(sequences)
            first = batch.join(rows) if rows.ids else []
        except Exception:
            left = [sequence for sequence in sequences if sequence.number in self.running]
            if len(left) > 1:
                for sequence in left:
                    if sequence.scores:
                        sequence.scores.found.clear()
                    self.join(batch, [sequence])
            elif left:
                logger.exception("the model failed on a prompt of %d tokens", len(left[0].prompt))
                self.outbox[self.running.pop(left[0].number)] = "failed"
            return
        for number, token in zip(rows.numbers, first, strict=False):
            if token != self.tokenizer.end_of_text_id:
                self.stops[number] = self.take(number, token)
        self.flush()

    def take(self, number: int, token: int | None) -> bool:
        """Takes a token of a row, or its end (None); returns whether the row is to end here."""
        sequence = self.running[number]
        if token is None:
            del self.running[number]
            sequence.pieces.append(sequence.writer.flush())
            self.outbox[sequence] = finish_of(sequence, self.decoder.config.max_position_embeddings)
            return False
        sequence.tokens += 1
        self.tokens += 1
        if sequence.cancelled:
            return True
        if text := sequence.writer.push(token):
            sequence.pieces.append(text)
        if sequence.tokens == 1 or (sequence.stream and (text or sequence.scores)):
            self.outbox[sequence] = None
        return sequence.writer.stopped

    def flush(self) -> None:
        """Posts what was written since the last time, if that was heard."""
        if (self.outbox or time.monotonic() - self.posted > COUNT_SECONDS) and self.heard():
            self.hand_over()

    def hand_over(self) -> None:
        self.post([sequence.event(finish) for sequence, finish in self.outbox.items()])
        for sequence in self.outbox:
            sequence.pieces.clear()
            if sequence.scores:
                sequence.scores.found.clear()
        self.outbox, self.posted = {}, time.monotonic()


def finish_of(sequence: ActiveSequence, positions: int) -> FinishReason:
    """Why a sequence ended; length: it had all its tokens; stop: it ended by itself or at a stop text."""
    if sequence.cancelled:
        return "stopped"
    most = min(sequence.config.max_new_tokens, positions - len(sequence.prompt))
    given_up = sequence.constraint is not None and sequence.constraint.given_up
    return "length" if (sequence.tokens == most or given_up) and not sequence.writer.stopped else "stop"
