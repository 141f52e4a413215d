"""A server from its start to its end: listen, have the model loaded and verified, serve, drain, stop.

It listens before the model is there, so that whoever watches it sees a process that is alive and not ready. A client's
connection has a time limit of its own, since uvicorn would wait for ever for request headers that don't come.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import math
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...config.generation import ServeConfig
from .access import ApiKeys, access_of
from .app import Service, create_app
from .model_process.messages import Folder, Found, Setup, Source
from .model_process.served_model import ServedModel
from .model_process.supervisor import Supervisor

logger = logging.getLogger(__name__)

HEADER_SECONDS = 10.0
"""From the connection's opening, or a later request's first byte, to the end of its headers; then it is closed."""

ANSWERED_SECONDS = 2.0
"""How long the rest of a body is read after the answer, for clients that send all before they read; then it is closed.
"""


class Gathered:
    """A transport that sends what is written in one turn of the event loop at once: an answer's head with its body.

    Each call of the system, and the client that it wakes, costs more than all the rest of a refusal.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.transport, self.loop = transport, loop
        self.held: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self.held:
            self.loop.call_soon(self.flush)
        self.held.append(data)

    def flush(self) -> None:
        if self.held:
            self.transport.write(b"".join(self.held))
            self.held = []

    def close(self) -> None:
        self.flush()
        self.transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class Connection(H11Protocol):
    """A client's connection that is closed when headers, or the end of a body that was answered, don't come in time."""

    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Gathered(transport, self.loop))  # type: ignore[arg-type]
        self.wait(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        answered = self.is_answered
        super().data_received(data)
        if answered != self.is_answered:
            self.stop_waiting()
        if self.conn.their_state is h11.IDLE:
            self.wait(HEADER_SECONDS)
        elif not self.is_answered:
            self.stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.is_answered:
            self.wait(ANSWERED_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_waiting()
        super().connection_lost(exc)

    @property
    def is_answered(self) -> bool:
        """Whether a request has its answer before all of its body has come."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def wait(self, seconds: float) -> None:
        if self.timer is None:
            self.timer = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def stop_waiting(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Listener(socket.socket):
    """Keeps some file descriptors for files: beyond the rest, connections get a 503 and are closed.

    asyncio would leave them waiting, and write a traceback for each try to accept one.
    """

    told_at = -math.inf

    def accept(self) -> tuple[socket.socket, Any]:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            connection, address = super().accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # files have taken those that are kept, too
                self.tell(limit)
                time.sleep(ACCEPT_AGAIN_SECONDS)
                raise BlockingIOError from None
            raise
        if limit == resource.RLIM_INFINITY or connection.fileno() < limit - min(FILES, limit // 4):
            return connection, address
        with connection, contextlib.suppress(OSError):
            connection.send(NO_DESCRIPTORS)
        self.tell(limit)
        raise BlockingIOError  # asyncio asks again when there is another

    def tell(self, limit: int) -> None:
        if time.monotonic() - self.told_at > TELL_SECONDS:
            self.told_at = time.monotonic()
            logger.warning("connections have taken the %d file descriptors (ulimit -n): further ones get 503", limit)


FILES = 32
"""File descriptors that aren't for connections."""

NO_DESCRIPTORS = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

ACCEPT_AGAIN_SECONDS = 0.05

TELL_SECONDS = 60.0
"""Between two lines in the log that say the same."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)

HANG_UP_SECONDS = 2
"""How long uvicorn waits at the end for clients that read slowly."""

KEEP_ALIVE_SECONDS = 30
"""Longer than httpx, and so OpenAI's client, keeps its own: the server must not hang up on a request under way."""

TICK = 0.02
"""Seconds between two looks at what is still in flight."""


class QuietServer(uvicorn.Server):
    """uvicorn without its signal handlers, which would stop listening at once, before /ready has said 503."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Lifecycle:
    """One server, in this process but for the model. Raises ValueError where it can't listen."""

    def __init__(self, config: ServeConfig, source: Source | Path, name: str, key: ApiKeys | None = None) -> None:
        """What is served to whom.

        Args:
            config: Its `model` is for `source` to find.
            source: The model's folder, or what finds it.
            name: What clients call the model.
            key: The API key, or keys, one of which clients must send.
        """
        self.config = config
        source = source if isinstance(source, Source) else Folder(source)
        self.setup = Setup(source, config.dtype, name, config.limits)
        self.listener = listen(config.host, config.port)
        self.address = address_of(self.listener)
        host = self.listener.getsockname()[0]
        self.this_machine_only = ipaddress.ip_address(host).is_loopback
        self.service = Service(name, config.limits, access_of(config, host, key))

    def run(self, ready: Callable[[ServedModel], None], found: Callable[[Found], None] = lambda found: None) -> None:
        """Serves until SIGTERM or SIGINT. Raises what keeps the model from being served, CheckpointError if damaged.

        Args:
            ready: Is called when a model takes requests: at the start, when its process had died, when its alias moved.
            found: Is called before it is loaded.
        """
        asyncio.run(self.serve(ready, found))

    async def serve(self, ready: Callable[[ServedModel], None], found: Callable[[Found], None]) -> None:
        self.stopping = asyncio.Event()
        self.server = QuietServer(
            uvicorn.Config(
                create_app(self.service),
                http=Connection,
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=HANG_UP_SECONDS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.stop)
        serving = asyncio.create_task(self.server.serve(sockets=[self.listener]))
        try:
            await self.work(ready, found)
        finally:
            self.server.should_exit = True
            await serving
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    async def work(self, ready: Callable[[ServedModel], None], found: Callable[[Found], None]) -> None:
        supervisor = Supervisor(self.service, self.setup, self.config.follow_seconds, found, ready)
        keeping = asyncio.create_task(supervisor.run())
        stopped = asyncio.create_task(self.stopping.wait())
        await asyncio.wait((keeping, stopped), return_when=asyncio.FIRST_COMPLETED)
        if self.stopping.is_set():
            await self.drain()
            keeping.cancel()
        stopped.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping

    def stop(self) -> None:
        """Drains at the first signal; at the second it doesn't wait for requests."""
        if self.stopping.is_set():
            self.server.force_exit = True
        self.service.state = "draining"
        self.stopping.set()

    async def drain(self) -> None:
        """Waits until all accepted requests are answered, or for limits.drain_seconds; the rest is stopped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.limits.drain_seconds):
                while self.service.in_flight and not self.server.force_exit:
                    await asyncio.sleep(TICK)


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise ValueError(f"can't listen on host={host} port={port}: {reason}; port=0 takes any free one") from error
    # Connections inherit it. Without it an answer's body waits for the client's TCP to acknowledge its head, 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Listener(fileno=listener.detach())


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
