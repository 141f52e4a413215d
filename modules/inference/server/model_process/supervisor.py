"""Has a model's process started, again when it dies, and another one when the alias moves that it was found by."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import pickle
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .messages import Found, Setup
from .process_handle import ModelProcess, NotServedError, ProcessLostError, RegistryError
from .served_model import ServedModel

if TYPE_CHECKING:
    from ..app import Service

logger = logging.getLogger(__name__)

LOADS = 3
"""How often the process may die in a row before it has loaded its model; then the server ends too."""

TICK = 0.05
"""Seconds between two looks at a model that ends its last texts."""

MARGIN = 1.0
"""Seconds after its requests' time is over until such a model is ended anyway: one that hangs never ends a text."""

AWAY_SECONDS = 600.0
"""Between two lines in the log that the registry doesn't answer."""


AGAIN_SECONDS = 600.0
"""The longest pause until a version that couldn't be served is tried again."""


@dataclass(frozen=True)
class Refusal:
    """Why a version couldn't take over, and when it is tried again."""

    version: str
    why: str
    pause: float
    again_at: float


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

    async def run(self) -> None:
        """Until this is cancelled. Raises what keeps the model from being served."""
        following: asyncio.Task[None] | None = None
        try:
            await self.serve(self.setup)
            if self.follow_seconds and self.current.version:
                following = asyncio.create_task(self.follow())
            while True:
                await self.keep(self.current)
        finally:
            if following:
                following.cancel()
            for process in self.processes[:]:
                await self.end(process)

    async def keep(self, process: ModelProcess) -> None:
        """Until another has taken its place, which another of the same model does when it dies."""
        self.changed.clear()
        await first_of(process.watch(), process.client.lost.wait(), self.changed.wait())
        if process is not self.current:  # whose end is then `retire`'s business
            return
        self.service.serve_without(process.model)
        how, again = await process.how_it_ended(), self.service.state != "draining"
        what = "the model's process died (%s), and its requests failed" + "; starting it again" * again
        logger.warning(what, how)
        if not again:  # nobody will ask it for anything
            await asyncio.Event().wait()
        async with self.loading:
            if process is self.current:  # and not another version, which was being loaded
                await self.end(process)
                await self.serve(replace(self.setup, version=process.version, folder=process.folder))

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
        self.processes.append(process)
        try:
            await process.start()
            await process.load(self.found)
        except BaseException:
            await self.end(process)
            raise
        self.current = process
        self.service.serve_with(process.model)
        self.changed.set()
        self.ready(process.model)

    async def follow(self) -> None:
        """Looks where the alias points, and has that version take over; one that can't is tried again (`refusal`)."""
        refused: Refusal | None = None
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
            refused = refused if refused and version == refused.version else None
            if version == self.current.version or (refused and time.monotonic() < refused.again_at):
                continue
            try:
                await self.move_to(version)
            except Exception as error:
                refused = self.refusal(version, " ".join(str(error).split()), refused)

    def refusal(self, version: str, why: str, before: Refusal | None) -> Refusal:
        """Says so unless it was for the same reason `before`; the pause doubles, as the reason may pass or not.

        A store is briefly away, a file is still being written: the next look finds them.
        """
        if before is None or before.why != why:
            logger.warning("version %s isn't served: %s; going on with version %s", version, why, self.current.version)
        pause = max(self.follow_seconds, min(2 * before.pause, AGAIN_SECONDS)) if before else self.follow_seconds
        return Refusal(version, why, pause, time.monotonic() + pause)

    async def move_to(self, version: str) -> None:
        """Until the version before it has ended its texts: there are never more than two."""
        async with self.loading:
            before = self.current
            await self.take_over(replace(self.setup, version=version))
        await self.retire(before)

    async def retire(self, process: ModelProcess) -> None:
        """Ends a process after its last text, or when the time of all its requests is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.setup.limits.request_seconds + MARGIN):
                while process.client.rows:
                    await asyncio.sleep(TICK)
        self.service.serve_without(process.model)
        await self.end(process)

    async def end(self, process: ModelProcess) -> None:
        if process in self.processes:
            self.processes.remove(process)
            await process.end()


async def first_of(*works: Coroutine[Any, Any, Any]) -> None:
    """Returns when one of them does; the others are cancelled."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
