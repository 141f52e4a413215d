"""What the server's process knows of rows under way without asking, and what becomes of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modules.config.generation import GenerationConfig, LimitsConfig
from modules.inference.server.model_process.messages import (
    Cancel,
    Event,
    Prompt,
    Unpacker,
    Write,
    Written,
    packed,
)
from modules.inference.server.model_process.model_client import ModelClient, QueueFullError
from modules.inference.server.prometheus import Metrics


class Wire(asyncio.Transport):
    """What was sent to the model's process."""

    def __init__(self) -> None:
        super().__init__()
        self.unpacker = Unpacker()
        self.sent: list[Any] = []
        self.unread = 0

    def get_write_buffer_size(self) -> int:
        return self.unread

    def write(self, data: Any) -> None:
        self.sent += self.unpacker.feed(bytes(data))


class Client(ModelClient):
    """A client whose process is the test."""

    def __init__(self, **limits: int) -> None:
        super().__init__(LimitsConfig(**limits), Metrics())
        self.wire = Wire()
        self.connection_made(self.wire)
        self.events: list[Event] = []

    def ask(self, count: int = 1) -> list[int]:
        return self.submit([Prompt(0, [1, 2], GenerationConfig(), False)] * count, self.events.append)

    def hear(self, *events: Event, tokens: int = 0) -> None:
        self.data_received(packed(Written(tokens, list(events))))


def test_a_full_queue_takes_no_more() -> None:
    """Free places in the batch are room too."""
    client = Client(batch_rows=1, queue_rows=2, request_rows=2)
    first, second = client.ask(2)
    assert client.has_room()
    assert not client.has_room(2)
    with pytest.raises(QueueFullError):
        client.ask(2)
    third = client.ask()[0]
    assert not client.has_room()
    assert (client.waiting, client.running) == (3, 0)
    client.hear(Event(first, ""), Event(second, ""))  # both have begun
    assert (client.waiting, client.running) == (1, 2)
    assert not client.has_room()
    client.hear(Event(first, "春", "length", tokens=1))
    assert client.has_room()
    assert {first, second, third} == {0, 1, 2}
    sent = [prompt.number for message in client.wire.sent if isinstance(message, Write) for prompt in message.prompts]
    assert sent == [0, 1, 2]  # what was refused was not sent


def test_a_process_that_reads_nothing_is_sent_no_more() -> None:
    """It hangs: who waits and gives up makes room, and what was sent would become ever more."""
    client = Client()
    client.wire.unread = 2**21
    assert not client.has_room()
    with pytest.raises(QueueFullError):
        client.ask()
    client.wire.unread = 1000
    assert client.ask()


def test_events_come_by_the_rows_of_their_request() -> None:
    client = Client()
    client.ask()
    _, second = client.ask(2)
    client.hear(Event(second, ""), Event(second, "春", tokens=1), Event(second, "天", "stop", tokens=2), tokens=9)
    assert client.events == [Event(1, "春", tokens=1), Event(1, "天", "stop", tokens=2)]
    assert b"moyun_generated_tokens_total 9.0" in client.metrics.text()
    assert b"moyun_time_to_first_token_seconds_count 1.0" in client.metrics.text()
    client.hear(tokens=12)
    assert b"moyun_generated_tokens_total 12.0" in client.metrics.text()


def test_who_waits_gives_the_place_back_at_once_and_who_has_begun_when_it_has_ended() -> None:
    client = Client()
    waits, begun = client.ask(2)
    client.hear(Event(begun, ""))
    client.cancel([waits, begun])
    assert (client.waiting, client.running) == (0, 1)
    assert client.wire.sent[-1] == Cancel([waits, begun])
    client.hear(Event(waits, ""), Event(waits, "", "stopped"))  # it had just begun
    client.hear(Event(begun, "", "stopped"))
    assert (client.waiting, client.running) == (0, 0)
    client.cancel([waits, begun])
    assert client.wire.sent[-1] == Cancel([waits, begun])
    assert len(client.wire.sent) == 2  # nobody is told of what has ended


def test_when_the_process_is_gone_all_that_was_under_way_is_told() -> None:
    client = Client()
    client.ask(2)
    client.connection_lost(None)
    assert [event.finish for event in client.events] == ["lost", "lost"]
    assert [event.row for event in client.events] == [0, 1]
    with pytest.raises(QueueFullError):
        client.ask()


def test_messages_are_put_together_from_any_pieces() -> None:
    data = packed(Written(1, [Event(0, "春" * 300)])) + packed(Cancel([5])) + packed("x" * 70_000)
    for size in (1, 3, 1000, len(data)):
        unpacker = Unpacker()
        found = [message for at in range(0, len(data), size) for message in unpacker.feed(data[at : at + size])]
        assert found == [Written(1, [Event(0, "春" * 300)]), Cancel([5]), "x" * 70_000]
        assert not unpacker.held
