"""Starts the model's process, and starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....system.signals import STOP_SIGNALS
from ....tokenizer.tokenizer import load_tokenizer
from ..prometheus import Metrics
from .messages import Failed, Found, Ready, Setup
from .model_client import ModelClient
from .served_model import ServedModel

if TYPE_CHECKING:
    from ..app import Service

logger = logging.getLogger(__name__)

CHILD = "modules.inference.server.model_process.child"

LOADS = 3
"""How often the process may die in a row before it has loaded its model; then the server ends too."""


class ProcessLostError(Exception):
    """The model's process has died; the message says how."""


class ModelProcess:
    """A process with a model, from its start to its end. Used in `async with`: it ends with the block."""

    def __init__(self, setup: Setup, metrics: Metrics) -> None:
        self.setup = setup
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.client = ModelClient(setup.limits, metrics, self.said.put_nowait)

    async def __aenter__(self) -> ModelProcess:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = start_python(CHILD, theirs)
        await asyncio.get_running_loop().create_unix_connection(lambda: self.client, sock=ours)
        self.client.send(self.setup)
        return self

    async def __aexit__(self, *raised: object) -> None:
        self.client.stop()
        self.process.kill()
        self.client.transport.abort()
        await asyncio.to_thread(self.process.wait)

    async def load(self, found: Callable[[Path], None]) -> ServedModel:
        """The model, verified and warm. Raises what keeps it from being served, or ProcessLostError.

        found: is called with its folder before it is loaded.
        """
        while True:
            message = await self.next_message()
            if isinstance(message, Failed):
                raise pickle.loads(message.error)
            if isinstance(message, Found):
                found(message.folder)
            if isinstance(message, Ready):
                return await asyncio.to_thread(self.served, message)

    def served(self, ready: Ready) -> ServedModel:
        tokenizer = load_tokenizer(ready.folder)
        if tokenizer.fingerprint != ready.fingerprint:
            raise ValueError(f"{ready.folder}: its tokenizer was changed while it was loaded; start the server again")
        return ServedModel(self.client, tokenizer, ready.positions, self.setup.limits, ready.facts)

    async def next_message(self) -> Any:
        message = await self.said.get()
        if message is None:
            self.said.put_nowait(None)  # nor will there be any other
            raise ProcessLostError(await self.how_it_ended())
        return message

    async def how_it_ended(self) -> str:
        """In words, once it has."""
        await self.client.lost.wait()
        code = await asyncio.to_thread(self.process.wait)
        if code >= 0:
            return f"exit code {code}"
        memory = ": the system does so when memory runs out" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{memory}"


async def keep_serving(
    service: Service, setup: Setup, found: Callable[[Path], None], ready: Callable[[], None]
) -> None:
    """Loads a model and serves with it, again and again as its process dies, until this is cancelled.

    Raises what keeps the model from being served.
    """
    deaths = 0
    while True:
        async with ModelProcess(setup, service.metrics) as process:
            try:
                model = await process.load(found if not deaths else lambda folder: None)
            except ProcessLostError as lost:
                deaths += 1
                if deaths == LOADS:
                    raise ValueError(f"the model's process died {deaths} times while it loaded: {lost}") from None
                logger.warning("the model's process died while it loaded (%s); starting it again", lost)
                continue
            deaths = 0
            with contextlib.ExitStack() as serving:
                service.serve_with(model)
                serving.callback(service.serve_without, model)
                ready()
                how = await process.how_it_ended()
            logger.warning("the model's process died (%s), and its requests failed; starting it again", how)


def start_python(module: str, connection: socket.socket) -> subprocess.Popen[bytes]:
    """`python -m` with a socket's number as its argument, in an interpreter that imports from where this one does.

    Ctrl-C in a terminal, and SIGTERM of systemd, come to both processes: the new one leaves it to this one what to
    do about them. So they are blocked when it starts.
    """
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    command = [sys.executable, "-P", "-m", module, str(connection.fileno())]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return subprocess.Popen(
            command,
            pass_fds=[connection.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
