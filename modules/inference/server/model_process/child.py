"""The model's process: finds, verifies and loads a model, then writes what it is asked for.

It ends when the server's process has closed its end of the socket, or is gone, however that came. What it imports is
imported by the thread that loads, so that this is noticed at any time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import select
import socket
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .messages import (
    AskNewest,
    Cancel,
    Event,
    Failed,
    Found,
    Newest,
    Ping,
    Prompt,
    Ready,
    Setup,
    Write,
    Written,
    messages_of,
    packed,
)

if TYPE_CHECKING:
    from ....model.decoder import Decoder
    from ....tokenizer.tokenizer import Tokenizer
    from ..engine import ActiveSequence, Engine

logger = logging.getLogger(__name__)

UNREAD_BYTES = 16 * 1024
"""What may be written before it is read, about: beyond it pieces of text gather."""


class Desk:
    """The engine's side of the socket: its prompts come from there, and its texts go there."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        self.connection = connection
        self.poll = select.poll()
        self.poll.register(connection, select.POLLOUT)
        self.engine: Engine
        self.sending = threading.RLock()
        self.active: dict[int, ActiveSequence] = {}
        """What was submitted and may still be cancelled."""

    def send(self, message: object) -> None:
        with self.sending, contextlib.suppress(OSError):  # nobody is there any more, as listen() will find too
            self.connection.sendall(packed(message))

    def open(self, decoder: Decoder, tokenizer: Tokenizer, setup: Setup) -> Engine:
        from ..engine import Engine

        self.source = setup.source
        self.engine = Engine(decoder, tokenizer, setup.limits, self.post, self.heard)
        return self.engine

    def heard(self) -> bool:
        return bool(self.poll.poll(0))

    def post(self, events: list[Event]) -> None:
        for event in events:
            if event.finish:
                self.active.pop(event.row, None)
        # Plain tuples: to read the model's own would take torch.
        plain = [event._replace(scores=[(*score,) for score in event.scores]) for event in events]
        with self.sending:  # so that of two threads' messages the later one doesn't have the lower count
            self.send(Written(self.engine.tokens, plain))

    def listen(self, messages: Iterable[Any]) -> None:
        """Takes what is asked for, until nobody is there to ask."""
        for message in messages:
            if isinstance(message, Write):
                self.write(message.prompts)
            elif isinstance(message, Cancel):
                found = [self.active.pop(number, None) for number in message.numbers]
                self.engine.cancel([sequence for sequence in found if sequence])
            elif isinstance(message, Ping):
                self.send(message)
            elif isinstance(message, AskNewest):  # aside: the registry may take its time
                threading.Thread(target=self.tell_newest, name="newest", daemon=True).start()

    def tell_newest(self) -> None:
        try:
            version = self.source.newest()
            found = Newest(version, "" if version else "the alias names none")
        except Exception as error:
            found = Newest(None, " ".join(str(error).split()))
        self.send(found)

    def write(self, prompts: list[Prompt]) -> None:
        sequences, ended = [], []
        for prompt in prompts:
            try:
                sequences.append(sequence_of(prompt, self.engine.tokenizer))
            except ValueError as error:
                ended.append(Event(prompt.number, str(error), "refused"))
            except Exception:  # others' texts must not suffer for it
                logger.exception("a prompt of %d tokens can't be begun", len(prompt.ids))
                ended.append(Event(prompt.number, "", "failed"))
        self.active |= {sequence.number: sequence for sequence in sequences}
        self.engine.submit(sequences)
        if ended:
            self.post(ended)


def sequence_of(prompt: Prompt, tokenizer: Tokenizer) -> ActiveSequence:
    """ValueError where it can't be written as asked."""
    from ....model.decoding.token_scores import Scores
    from ...row_constraints import constraint_of
    from ...text_generator import Writer
    from ..engine import ActiveSequence

    config = prompt.config
    scores = None if prompt.top is None else Scores(prompt.top, prompt.scored)
    constraint = constraint_of(tokenizer, prompt.ids, config)
    writer = Writer(tokenizer, config.stop)
    return ActiveSequence(
        prompt.number, prompt.ids, config, writer, prompt.stream, scores=scores, constraint=constraint
    )


def load(desk: Desk, setup: Setup) -> None:
    """Has a model ready to write; says how far it is, or why it can't be had."""
    try:
        setup.source.settle()
        version = setup.version or setup.source.newest()
        folder = setup.folder if setup.folder and setup.folder.is_dir() else setup.source.find(version)
        from ....checkpoint.loading import check_folder
        from ....checkpoint.model_folder import read_provenance

        check_folder(folder)
        desk.send(Found(folder, version))
        decoder, tokenizer = load_and_warm(folder, setup.dtype)
        desk.open(decoder, tokenizer, setup).start()
        desk.send(ready(folder, decoder, tokenizer, setup, read_provenance(folder)))
    except Exception as error:
        desk.send(Failed(pickled(error), str(error)))
        os._exit(1)


def load_and_warm(folder: Path, dtype: str) -> tuple[Decoder, Tokenizer]:
    """The model, verified, after a first pass. Raises CheckpointError where it isn't what was saved."""
    from ....checkpoint.loading import load_for_inference, open_tokenizer, verify_model
    from ....checkpoint.verification import GOLDEN_PROMPT
    from ....config.generation import GenerationConfig
    from ....model.sampling import generate

    verify_model(folder)
    decoder, tokenizer = load_for_inference(folder, dtype), open_tokenizer(folder)
    prompt = tokenizer.encode_prompt(GOLDEN_PROMPT)[: decoder.config.max_position_embeddings - 1]
    config = GenerationConfig(max_new_tokens=2, temperature=0.0)
    for _ in generate(decoder, [prompt or [tokenizer.end_of_text_id]], config, end_of_text_id=-1):
        pass  # the first pass takes several times as long as those after it, and no client should wait for that
    return decoder, tokenizer


def ready(folder: Path, decoder: Decoder, tokenizer: Tokenizer, setup: Setup, run: Mapping[str, Any]) -> Ready:
    """run: how the model was made (read_provenance)."""
    from ..web_page import model_facts

    facts = model_facts(setup.name, decoder, tokenizer, setup.limits, run)
    return Ready(folder, tokenizer.fingerprint, decoder.config.max_position_embeddings, facts)


def pickled(error: Exception) -> bytes:
    """An exception with its traceback as a note, which is shown where it is nobody's mistake."""
    error.add_note("In another process:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(content := pickle.dumps(error))
    except Exception:
        plain = RuntimeError(str(error))
        plain.__notes__ = error.__notes__
        return pickle.dumps(plain)
    return content


def end_with(error: threading.ExceptHookArgs) -> None:
    """A process without one of its threads would take requests and answer none; the server starts another."""
    traceback.print_exception(error.exc_type, error.exc_value, error.exc_traceback)
    os._exit(1)


def main(descriptor: str) -> None:
    threading.excepthook = end_with
    connection = socket.socket(fileno=int(descriptor))
    received = messages_of(connection)
    if setup := next(received, None):
        desk = Desk(connection)
        threading.Thread(target=load, args=(desk, setup), name="load", daemon=True).start()
        desk.listen(received)
    os._exit(0)  # the engine's thread may be in the middle of a token, and nobody wants it


if __name__ == "__main__":
    main(*sys.argv[1:])
