"""Starts the model's process, starts it again when it dies, and follows the alias that the model was found by."""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ....tokenizer.tokenizer import load_tokenizer
from ..prometheus import Metrics
from .messages import AskNewest, Failed, Found, Newest, Ready, Setup
from .model_client import ModelClient
from .python_process import start_python
from .served_model import ServedModel

if TYPE_CHECKING:
    from ..app import Service

logger = logging.getLogger(__name__)

CHILD = "modules.inference.server.model_process.child"

LOADS = 3
"""How often the process may die in a row before it has loaded its model; then the server ends too."""


TICK = 0.05
"""Seconds between two looks at a model that ends its last texts."""

AWAY_SECONDS = 600.0
"""Between two lines in the log that the registry doesn't answer."""


class ProcessLostError(Exception):
    """The model's process has died; the message says how."""


class NotServedError(Exception):
    """Why a model can't be served."""

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
    """The registry's, where an alias is followed; once it is found."""

    def __init__(self, setup: Setup, metrics: Metrics) -> None:
        self.setup = setup
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.client = ModelClient(setup.limits, metrics, self.said.put_nowait)

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        self.process = await asyncio.to_thread(start_python, CHILD, theirs)  # on a busy machine it takes a while
        await asyncio.get_running_loop().create_unix_connection(lambda: self.client, sock=ours)
        self.client.send(self.setup)

    async def end(self) -> None:
        self.client.stop()
        self.process.kill()
        self.client.transport.abort()
        await asyncio.to_thread(self.process.wait)

    async def load(self, found: Callable[[Found], None]) -> None:
        """Has the model verified and warm. Raises NotServedError, ProcessLostError, or ValueError for what doesn't fit.

        found: is called before it is loaded.
        """
        while True:
            message = await self.next_message()
            if isinstance(message, Failed):
                raise NotServedError(message)
            if isinstance(message, Found):
                self.version = message.version
                found(message)
            if isinstance(message, Ready):
                self.model = await asyncio.to_thread(self.served, message)
                return

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
        code = await asyncio.to_thread(self.process.wait)
        if code >= 0:
            return f"exit code {code}"
        memory = ": the system does so when memory runs out" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{memory}"


class Supervisor:
    """Keeps a server's model: starts its process again when it dies, and follows its alias."""

    def __init__(
        self,
        service: Service,
        setup: Setup,
        follow_seconds: float,
        found: Callable[[Found], None],
        ready: Callable[[ServedModel], None],
    ) -> None:
        """What is kept.

        Args:
            follow_seconds: Between two looks at where the alias points; 0: never.
            found: Is called before a model is loaded.
            ready: Is called when it takes requests.
        """
        self.service, self.setup, self.follow_seconds = service, setup, follow_seconds
        self.found, self.ready = found, ready
        self.processes: list[ModelProcess] = []
        """All that haven't been ended."""
        self.current: ModelProcess
        """The one that takes requests."""
        self.changed = asyncio.Event()
        """Another has become it."""
        self.loading = asyncio.Lock()
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until this is cancelled. Raises what keeps the model from being served."""
        try:
            await self.serve(self.setup)
            if self.follow_seconds and self.current.version:
                self.spawn(self.follow())
            while True:
                await self.keep(self.current)
        finally:
            for task in self.tasks:
                task.cancel()
            for process in self.processes[:]:
                await self.end(process)

    async def keep(self, process: ModelProcess) -> None:
        """Until another has taken its place, which another of the same model does when it dies."""
        self.changed.clear()
        await first_of(process.client.lost.wait(), self.changed.wait())
        if process is not self.current:  # whose end is then `retire`'s business
            return
        self.service.serve_without(process.model)
        how = await process.how_it_ended()
        logger.warning("the model's process died (%s), and its requests failed; starting it again", how)
        async with self.loading:
            if process is self.current:  # and not another version, which was being loaded
                await self.end(process)
                await self.serve(replace(self.setup, version=process.version))

    async def serve(self, setup: Setup) -> None:
        """`take_over`, with patience for a process that dies. Raises what keeps the model from being served."""
        for left in reversed(range(LOADS)):
            try:
                await self.take_over(setup)
            except NotServedError as failed:
                raise pickle.loads(failed.error) from None
            except ProcessLostError as lost:
                if not left:
                    raise ValueError(f"the model's process died {LOADS} times while it loaded: {lost}") from None
                logger.warning("the model's process died while it loaded (%s); starting it again", lost)
            else:
                return

    async def take_over(self, setup: Setup) -> None:
        """Loads a model, which takes requests from then on."""
        process = ModelProcess(setup, self.service.metrics)
        await process.start()
        self.processes.append(process)
        try:
            await process.load(self.found)
        except BaseException:
            await self.end(process)
            raise
        self.current = process
        self.service.serve_with(process.model)
        self.changed.set()
        self.ready(process.model)

    async def follow(self) -> None:
        """Looks where the alias points, and has that version take over; one that can't isn't tried again."""
        refused: str | None = None
        told_at = -math.inf
        while True:
            await asyncio.sleep(self.follow_seconds)
            if self.service.state != "ready":
                continue
            try:
                version = await self.current.newest()
            except ProcessLostError:
                continue
            except RegistryError as error:
                if time.monotonic() - told_at > AWAY_SECONDS:
                    told_at = time.monotonic()
                    logger.warning(
                        "no newer version can be found: %s; going on with version %s", error, self.current.version
                    )
                continue
            told_at = -math.inf
            refused = refused if version == refused else None
            if version in (refused, self.current.version):
                continue
            async with self.loading:
                before = self.current
                try:
                    await self.take_over(replace(self.setup, version=version))
                except Exception as error:
                    refused, why = version, " ".join(str(error).split())
                    logger.warning(
                        "version %s isn't served: %s; going on with version %s", version, why, before.version
                    )
                else:
                    self.spawn(self.retire(before))

    async def retire(self, process: ModelProcess) -> None:
        """Ends a process after its last text."""
        while process.client.rows:
            await asyncio.sleep(TICK)
        self.service.serve_without(process.model)
        await self.end(process)

    async def end(self, process: ModelProcess) -> None:
        if process in self.processes:
            self.processes.remove(process)
            await process.end()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def first_of(*works: Coroutine[Any, Any, Any]) -> None:
    """Returns when one of them does; the others are cancelled."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
