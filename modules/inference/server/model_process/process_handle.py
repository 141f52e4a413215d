"""One process of a model as the server has it: started, asked and ended."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....tokenizer.tokenizer import load_tokenizer
from ..prometheus import Metrics
from .messages import AskNewest, Failed, Found, Newest, Ping, Ready, Setup
from .model_client import ModelClient
from .python_process import start_python
from .served_model import ServedModel

CHILD = "modules.inference.server.model_process.child"

PING_SECONDS, PINGS = 10.0, 6
"""Seconds between two questions whether the process is there, and how many without an answer mean that it hangs."""


class ProcessLostError(Exception):
    """The model's process has died; the message says how."""


class NotServedError(Exception):
    """Why a model can't be served. `error` is the exception, which it may take torch to read."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.why)
        self.error = failed.error


class RegistryError(Exception):
    """The registry doesn't say which version there is."""


class ModelProcess:
    """A process with a model, from its start to its end."""

    model: ServedModel
    """Once it is loaded."""
    version: str | None = None
    """The registry's, where the model is in one; once it is found."""
    folder: Path | None = None
    """Once it is found."""
    process: subprocess.Popen[bytes] | None = None
    transport: asyncio.Transport | None = None
    hung: bool = False

    def __init__(self, setup: Setup, metrics: Metrics) -> None:
        self.setup = setup
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.client = ModelClient(setup.limits, metrics, self.said.put_nowait)

    async def start(self) -> None:
        """Raises ProcessLostError where the system has no room for another process."""
        loop = asyncio.get_running_loop()
        try:
            ours, theirs = socket.socketpair()
            self.transport, _ = await loop.create_unix_connection(lambda: self.client, sock=ours)
            self.process = await asyncio.to_thread(start_python, CHILD, theirs)  # on a busy machine it takes a while
        except OSError as error:
            raise ProcessLostError(f"it can't be started: {error.strerror}") from error
        self.client.send(self.setup)

    async def end(self) -> None:
        """Also where it was begun to be started, and no more."""
        self.client.stop()
        if self.process:
            self.process.kill()
        if self.transport:
            self.transport.abort()
        if self.process:
            await asyncio.to_thread(self.process.wait)

    async def load(self, found: Callable[[Found], None]) -> None:
        """Has the model verified and warm. Raises NotServedError, ProcessLostError, or ValueError for what
        doesn't fit.

        found: is called before it is loaded.
        """
        while True:
            message = await self.next_message()
            if isinstance(message, Failed):
                raise NotServedError(message)
            if isinstance(message, Found):
                self.version, self.folder = message.version, message.folder
                found(message)
            if isinstance(message, Ready):
                self.model = await asyncio.to_thread(self.served, message)
                return

    async def watch(self) -> None:
        """Until it has ended. One that hangs is killed: nothing else would ever end what it was asked for."""
        unanswered = 0
        while unanswered < PINGS:
            before = self.client.heard
            self.client.send(Ping())
            await asyncio.sleep(PING_SECONDS)
            unanswered = unanswered + 1 if self.client.heard == before else 0
        assert self.process
        self.hung = True
        self.process.kill()
        await self.client.lost.wait()

    async def newest(self) -> str:
        """The version that the alias names now. Raises RegistryError, or ProcessLostError."""
        self.client.send(AskNewest())
        message = await self.next_message()
        assert isinstance(message, Newest)
        if message.version is None:
            raise RegistryError(message.why)
        return message.version

    def served(self, ready: Ready) -> ServedModel:
        tokenizer = load_tokenizer(ready.folder)
        if tokenizer.fingerprint != ready.fingerprint:
            raise ValueError(f"{ready.folder}: its tokenizer was changed while it was loaded; start the server again")
        facts = ready.facts | {"version": self.version}
        return ServedModel(self.client, tokenizer, ready.positions, self.setup.limits, facts)

    async def next_message(self) -> Any:
        message = await self.said.get()
        if message is None:
            self.said.put_nowait(None)  # nor will there be any other
            raise ProcessLostError(await self.how_it_ended())
        return message

    async def how_it_ended(self) -> str:
        """In words, once it has."""
        await self.client.lost.wait()
        assert self.process
        code = await asyncio.to_thread(self.process.wait)
        if self.hung:
            return f"it didn't answer for {PINGS * PING_SECONDS:g} s, and was killed"
        if code >= 0:
            return f"exit code {code}"
        memory = ": the system does so when memory runs out" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{memory}"
