"""A server from its start to its end: listen, load and verify, serve, drain, stop.

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
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...checkpoint.loading import load_for_inference, open_tokenizer, verify_model
from ...checkpoint.model_folder import read_provenance
from ...checkpoint.verification import GOLDEN_PROMPT
from ...config.generation import GenerationConfig, ServeConfig
from ...model.decoder import Decoder
from ...model.sampling import generate
from ...tokenizer.tokenizer import Tokenizer
from .access import ApiKeys, access_of
from .app import Service, create_app
from .engine import Engine
from .records.ratings import Recorder

logger = logging.getLogger(__name__)

HEADER_SECONDS = 10.0
"""From the connection's opening, or a later request's first byte, to the end of its headers; then it is closed."""

ANSWERED_SECONDS = 2.0
"""How long the rest of a body is read after the answer, for clients that send all before they read; then it is closed.
"""


class Connection(H11Protocol):
    """A client's connection that is closed when headers, or the end of a body that was answered, don't come in time."""

    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
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

LOADING = "loading"

TICK = 0.02
"""Seconds between two looks at what is still in flight."""


class QuietServer(uvicorn.Server):
    """uvicorn without its signal handlers, which would stop listening at once, before /ready has said 503."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Lifecycle:
    """One server in one process. Raises ValueError where it can't listen, CheckpointError for a damaged model."""

    def __init__(
        self,
        config: ServeConfig,
        folder: Path,
        name: str,
        key: ApiKeys | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """key: one of which clients must send; recorder: is told of what was asked and answered."""
        self.config, self.folder = config, folder
        self.listener = listen(config.host, config.port)
        self.address = address_of(self.listener)
        host = self.listener.getsockname()[0]
        self.this_machine_only = ipaddress.ip_address(host).is_loopback
        self.service = Service(name, config.limits, access_of(config, host, key), recorder)

    def run(self, ready: Callable[[str], None]) -> None:
        """Serves until SIGTERM or SIGINT; ready is called with the address when requests are taken."""
        asyncio.run(self.serve(ready))

    async def serve(self, ready: Callable[[str], None]) -> None:
        self.stopping = asyncio.Event()
        self.server = QuietServer(
            uvicorn.Config(
                create_app(self.service),
                http=Connection,
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
            await self.work(ready)
        finally:
            self.server.should_exit = True
            await serving
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    async def work(self, ready: Callable[[str], None]) -> None:
        loading = load_aside(self.folder, self.config.dtype)
        stopped: asyncio.Future[Any] = asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait([loading, stopped], return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            loading.cancel()
            return
        decoder, tokenizer = loading.result()
        post = asyncio.get_running_loop().call_soon_threadsafe
        engine = Engine(decoder, tokenizer, self.config.limits, self.service.metrics, post)
        engine.start()
        try:
            self.service.serve_with(engine, tokenizer, read_provenance(self.folder))
            ready(self.address)
            await stopped
            await self.drain()
        finally:
            engine.stop()

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


def load_aside(folder: Path, dtype: str) -> asyncio.Future[tuple[Decoder, Tokenizer]]:
    """`load_and_warm` in a thread that may be left behind when the process ends, unlike those of asyncio.to_thread."""
    result: Future[tuple[Decoder, Tokenizer]] = Future()
    threading.Thread(target=settle, args=(result, folder, dtype), name=LOADING, daemon=True).start()
    return asyncio.wrap_future(result)


def is_loading() -> bool:
    """Whether a model is being loaded, for nobody if the server has ended."""
    return any(thread.name == LOADING for thread in threading.enumerate())


def settle(result: Future[tuple[Decoder, Tokenizer]], folder: Path, dtype: str) -> None:
    with contextlib.suppress(InvalidStateError):  # a signal came first, and nobody waits any more
        try:
            result.set_result(load_and_warm(folder, dtype))
        except Exception as error:
            result.set_exception(error)


def load_and_warm(folder: Path, dtype: str) -> tuple[Decoder, Tokenizer]:
    """The model, verified, after a first pass. Raises CheckpointError where it isn't what was saved."""
    verify_model(folder)
    decoder, tokenizer = load_for_inference(folder, dtype), open_tokenizer(folder)
    prompt = tokenizer.encode_prompt(GOLDEN_PROMPT)[: decoder.config.max_position_embeddings - 1]
    config = GenerationConfig(max_new_tokens=2, temperature=0.0)
    for _ in generate(decoder, [prompt or [tokenizer.end_of_text_id]], config, end_of_text_id=-1):
        pass  # the first pass takes several times as long as those after it, and no client should wait for that
    return decoder, tokenizer


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
