"""What the server's process and the model's say to each other, and how it travels. Without torch.

A message is pickled, with its length before it, on a socket that both processes were born with: nobody else can write
to it.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from ....config.generation import GenerationConfig, LimitsConfig
from ...logprobs import Score

FinishReason: TypeAlias = Literal["stop", "length", "failed", "stopped", "refused", "lost"]
"""stop, length: as OpenAI has them; failed: the model did; stopped: the row was cancelled, or the server stops;
refused: it can't be written as asked, and its text says why; lost: the model's process has ended."""


class Event(NamedTuple):
    """A piece of a sequence's text, or its end."""

    row: int
    """Which sequence: for the engine its number, for a request which of its texts."""
    text: str
    finish: FinishReason | None = None
    """Why the text ended; None where it goes on."""
    scores: Sequence[Score] = ()
    """Of its tokens, and before them of the prompt's, where they are wanted. Tokens whose text is still held back, as
    it may begin a stop text, are among them."""
    tokens: int = 0
    """Written so far."""
    cut: bool = False
    """Whether a stop text has ended it."""
    cached: int = 0
    """Tokens of its prompt that were kept from earlier ones and not read again."""


# --- to the model's process ---


class Source:
    """Where the served model is. It travels to the model's process, which asks it."""

    def settle(self) -> None:
        """Prepares the model's process, before anything else is done there."""

    def newest(self) -> str | None:
        """The version that is to be served now; None where there is none. Raises what keeps it from knowing."""
        return None

    def find(self, version: str | None) -> Path:
        """The folder of a version, or of the model where it has none."""
        raise NotImplementedError


@dataclass(frozen=True)
class Folder(Source):
    folder: Path

    def find(self, version: str | None) -> Path:
        return self.folder


@dataclass(frozen=True)
class Setup:
    """The first message: which model is to be served, and how."""

    source: Source
    dtype: str
    name: str
    """What clients call it."""
    limits: LimitsConfig
    version: str | None = None
    """Which version of the model; None: the newest, or the only one."""
    folder: Path | None = None
    """Where that version was found before: it needn't be asked for again, and can't be while the registry is away."""


class Prompt(NamedTuple):
    """A sequence to be written."""

    number: int
    ids: list[int]
    config: GenerationConfig
    stream: bool
    """Whether pieces are wanted as they come; otherwise the whole text at its end."""
    top: int | None = None
    """Log-probabilities are wanted, and so many of the likeliest tokens beside each."""
    scored: range = range(0)
    """Positions of the prompt's tokens whose log-probabilities are wanted too."""


class Write(NamedTuple):
    prompts: list[Prompt]


class Cancel(NamedTuple):
    numbers: list[int]


class Ping(NamedTuple):
    """Is anybody there? The answer is the same."""


class AskNewest(NamedTuple):
    """Which version does the alias name? The answer is Newest."""


# --- from it ---


@dataclass(frozen=True)
class Found:
    folder: Path
    version: str | None


class Newest(NamedTuple):
    version: str | None
    """None: it can't be found."""
    why: str = ""


@dataclass(frozen=True)
class Ready:
    """The model is loaded, verified and warm."""

    folder: Path
    fingerprint: str
    """Of its tokenizer."""
    positions: int
    facts: dict[str, Any]
    """The model's card."""


@dataclass(frozen=True)
class Failed:
    """The model can't be served; after this the process ends."""

    error: bytes
    """The exception, pickled: what it takes to read it, torch perhaps, is imported by whoever raises it."""
    why: str


class Written(NamedTuple):
    tokens: int
    """Of all sequences since the process began."""
    events: list[Event]


LENGTH = 4


def packed(message: Any) -> bytes:
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return len(content).to_bytes(LENGTH, "little") + content


class Unpacker:
    """Puts messages together from the pieces that a socket gives."""

    def __init__(self) -> None:
        self.held = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are whole now."""
        self.held += data
        while len(self.held) >= LENGTH:
            end = LENGTH + int.from_bytes(self.held[:LENGTH], "little")
            if len(self.held) < end:
                return
            message = pickle.loads(memoryview(self.held)[LENGTH:end].tobytes())
            del self.held[:end]
            yield message


def messages_of(connection: socket.socket) -> Iterator[Any]:
    """What comes, until the other process has closed its end or is gone."""
    unpacker = Unpacker()
    while True:
        try:
            data = connection.recv(65536)
        except OSError:
            return
        if not data:
            return
        yield from unpacker.feed(data)
