"""The model's side of the socket: what it sends, and what becomes of others where one request or a thread fails."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from modules.config.generation import GenerationConfig
from modules.config.loader import load_config
from modules.inference.server.lifecycle import Lifecycle
from modules.inference.server.model_process import child
from modules.inference.server.model_process.child import Desk
from modules.inference.server.model_process.messages import Event, Prompt, Write, Written, messages_of
from tests.helpers.model_sources import Fails


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


class Watched:
    """A lock that says when somebody asks for it."""

    def __init__(self) -> None:
        self.lock, self.asked = threading.RLock(), threading.Event()

    def __enter__(self) -> None:
        self.asked.set()
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def test_the_count_of_tokens_never_goes_back(ends: tuple[socket.socket, socket.socket]) -> None:
    """A counter that did would end the connection, and all requests with it."""
    desk: Any = Desk(ends[1])
    desk.engine, desk.sending = SimpleNamespace(tokens=5), Watched()
    other = threading.Thread(target=desk.post, args=([Event(1, "no", "refused")],))
    desk.sending.lock.acquire()
    other.start()
    assert desk.sending.asked.wait(20)
    desk.engine.tokens = 9
    desk.post([])
    desk.sending.lock.release()
    other.join()
    received = messages_of(ends[0])
    assert [next(received).tokens for _ in range(2)] == [9, 9]


def test_a_request_that_fails_at_its_beginning_fails_alone(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sequence_of(prompt: Prompt, tokenizer: Any) -> Any:
        if prompt.number == 1:
            raise RuntimeError("a library failed, says the test")
        return SimpleNamespace(number=prompt.number)

    monkeypatch.setattr(child, "sequence_of", sequence_of)
    desk: Any = Desk(ends[1])
    submitted: list[Any] = []
    desk.engine = SimpleNamespace(tokens=0, tokenizer=None, submit=submitted.extend)
    prompts = [Prompt(number, [1], GenerationConfig(), False) for number in range(3)]
    desk.listen([Write(prompts[:2]), Write(prompts[2:])])
    assert [sequence.number for sequence in submitted] == [0, 2]
    assert next(messages_of(ends[0])) == Written(0, [Event(1, "", "failed", scores=[])])


@pytest.mark.server
def test_a_thread_that_ends_by_an_error_ends_the_process() -> None:
    """Which is started again; otherwise the server would wait for it for ever."""
    server = Lifecycle(load_config("serve", ["port=0"]), Fails("exit"), "x")
    in_vain = threading.Timer(60, os.kill, (os.getpid(), signal.SIGTERM))
    in_vain.start()
    with pytest.raises(ValueError, match="the model's process died 3 times while it loaded: exit code 1"):
        server.run(lambda model: pytest.fail("it says that it is ready"))
    in_vain.cancel()
