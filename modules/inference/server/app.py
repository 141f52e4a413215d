"""The endpoints. What a client gets is an answer or one line that says why not; tracebacks go to the log alone."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...config.generation import LimitsConfig
from ...tokenizer.tokenizer import Tokenizer
from . import mlflow_protocol, openai
from .engine import Engine, QueueFullError
from .openai import OUTCOME, EventStream
from .prometheus import Metrics
from .request_handle import ClientGoneError, RequestHandle
from .requests import (
    CompletionRequest,
    RequestError,
    as_problem,
    characters_of,
    check_limits,
    prompt_limit,
    read_json,
    shown,
    tokenize,
)
from .web_page import FILES, model_facts, page_file

RETRY_AFTER = "1"
"""Seconds that a refused client is asked to wait."""

GONE = 499
"""nginx's status for a client that left; nobody reads it."""

OUTCOMES = {200: "ok", 503: "overloaded", 504: "timeout", 408: "timeout", GONE: "disconnected", 500: "failed"}

ENDPOINTS = {"/v1/completions": "completions", "/invocations": "invocations"}
"""Those that ask for text."""

THERE_IS = (
    "POST /v1/completions and /invocations, GET / (a page), /card, /v1/models, /health, /ready, /ping and /metrics"
)


class Service:
    """The endpoints' common state: loading until `serve_with`, then ready, then draining."""

    def __init__(self, name: str, limits: LimitsConfig) -> None:
        self.name, self.limits = name, limits
        self.metrics = Metrics()
        self.metrics.watch(
            lambda: len(self.engine.waiting) if self.engine else 0,
            lambda: len(self.engine.running) if self.engine else 0,
        )
        self.engine: Engine | None = None
        self.state: Literal["loading", "ready", "draining"] = "loading"
        self.in_flight = 0
        """Requests taken and not wholly answered."""
        self.created = int(time.time())

    def serve_with(self, engine: Engine, tokenizer: Tokenizer, run: Mapping[str, Any] | None = None) -> None:
        """From here on requests are taken; run: read_provenance of its folder."""
        self.engine, self.tokenizer = engine, tokenizer
        self.facts = model_facts(self.name, engine.decoder, tokenizer, self.limits, run or {})
        self.prompt_tokens = prompt_limit(self.limits, engine.decoder.config.max_position_embeddings)
        self.characters = characters_of(self.prompt_tokens, tokenizer)
        self.state = "ready"

    # --- asking for text ---

    async def completions(self, request: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + self.limits.request_seconds
        wanted = openai.parse(await self.body(request, deadline), self.name)
        exchange, prompts = self.exchange(wanted, request, "prompt", "max_tokens")
        head = openai.head(f"cmpl-{uuid.uuid4().hex}", int(time.time()), self.name)
        if wanted.stream:
            return EventStream(exchange, wanted, prompts, head, deadline)
        async with exchange, asyncio.timeout_at(deadline):
            ends = await exchange.ends()
        return JSONResponse(openai.completion(head, wanted, ends, openai.usage(prompts, exchange.tokens)))

    async def invocations(self, request: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + self.limits.request_seconds
        wanted = mlflow_protocol.parse(await self.body(request, deadline), self.limits)
        exchange, _ = self.exchange(wanted, request, "src_txt", "max_new_tokens")
        async with exchange, asyncio.timeout_at(deadline):
            ends = await exchange.ends()
        return JSONResponse(mlflow_protocol.predictions(wanted, ends, full=self.tokenizer.prompt_template is None))

    async def body(self, request: Request, deadline: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout_at(deadline):
                return await read_json(request, self.limits)
        except TimeoutError:
            raise RequestError(408, f"the body took over {self.limits.request_seconds:g} s", "body") from None

    def no_room(self, rows: int = 1) -> RequestError | None:
        """A 503 while the model is loading, after SIGTERM, and where the queue has no room for so many."""
        if self.engine is None or self.state != "ready":
            return RequestError(503, f"the server is {self.state}", code=self.state)
        if not self.engine.has_room(rows):
            return RequestError(503, "too many prompts are waiting; try again later", code="overloaded")
        return None

    def exchange(
        self, wanted: CompletionRequest, request: Request, field: str, new_tokens: str
    ) -> tuple[RequestHandle, list[list[int]]]:
        """The request in the engine's queue, and its prompts' ids; RequestError where it can't be taken."""
        check_limits(wanted, self.limits, field, new_tokens, self.characters)
        if problem := self.no_room(len(wanted.prompts)):
            raise problem
        prompts = tokenize(wanted, self.tokenizer, self.prompt_tokens, field)
        try:
            assert self.engine
            exchange = RequestHandle(self.engine, self.tokenizer, wanted, prompts, request.receive)
        except QueueFullError:
            raise RequestError(503, "the server is stopping", code="draining") from None
        self.metrics.prompt_tokens.inc(sum(map(len, prompts)))
        return exchange, prompts

    # --- asking about the server ---

    async def health(self) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(self) -> Response:
        return JSONResponse({"status": self.state}, 200 if self.state == "ready" else 503)

    async def ping(self) -> Response:
        """MLflow's /ready."""
        return Response("\n", 200 if self.state == "ready" else 503, media_type="application/json")

    async def metrics_text(self) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def page(self, request: Request) -> Response:
        return page_file(request.url.path)

    async def card(self) -> Response:
        if self.engine is None:
            raise RequestError(503, f"the server is {self.state}", code=self.state)
        return JSONResponse(self.facts)

    async def models(self) -> Response:
        return JSONResponse({"object": "list", "data": [openai.model_card(self.name, self.created)]})

    async def model(self, name: str) -> Response:
        openai.check_model(name, self.name)
        return JSONResponse(openai.model_card(self.name, self.created))


def create_app(service: Service) -> ASGIApp:
    app = FastAPI(openapi_url=None)  # its pages would load scripts from elsewhere
    app.add_api_route("/v1/completions", service.completions, methods=["POST"], response_model=None)
    app.add_api_route("/invocations", service.invocations, methods=["POST"], response_model=None)
    answers: dict[str, Callable[..., Any]] = {
        "/v1/models": service.models,
        "/v1/models/{name:path}": service.model,
        "/health": service.health,
        "/ready": service.ready,
        "/ping": service.ping,
        "/metrics": service.metrics_text,
        "/card": service.card,
        **dict.fromkeys(FILES, service.page),
    }
    for path, answer in answers.items():
        app.add_api_route(path, answer, methods=["GET"], response_model=None)
    for kind in (RequestError, TimeoutError, ClientGoneError, ClientDisconnect, HTTPException, Exception):
        app.add_exception_handler(kind, refusal)
    return Observer(app, service)


async def refusal(request: Request, error: Exception) -> Response:
    """One line."""
    if isinstance(error, ClientGoneError | ClientDisconnect):
        return Response(status_code=GONE)
    if isinstance(error, HTTPException):  # the router's: no such path, another method
        what = f"{request.method} {shown(request.url.path)}: {error.detail}; there is {THERE_IS}"
        error = RequestError(error.status_code, what)
    return problem_response(request.url.path, as_problem(error))


def problem_response(path: str, problem: RequestError) -> Response:
    """In the form of whoever asked."""
    form = mlflow_protocol.error_body if path == "/invocations" else openai.error_body
    headers = {"Retry-After": RETRY_AFTER} if problem.status == 503 else None
    return JSONResponse(form(problem), problem.status, headers)


class Observer:
    """Around the app: counts requests for text from the first byte to the last of the answer."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = ENDPOINTS.get(scope.get("path", ""))
        if endpoint is None:
            return await self.app(scope, receive, send)
        arrived, metrics = time.monotonic(), self.service.metrics
        self.service.in_flight += 1
        send = partial(noting_status, scope, send)
        try:
            if problem := self.service.no_room():  # here, so that an overload costs as little as can be
                await problem_response(scope["path"], problem)(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        finally:
            self.service.in_flight -= 1
            outcome = scope.get(OUTCOME, "failed")
            metrics.requests.labels(endpoint, outcome).inc()
            if outcome == "ok":
                metrics.request_seconds.labels(endpoint).observe(time.monotonic() - arrived)


async def noting_status(scope: Scope, send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        scope[OUTCOME] = OUTCOMES.get(message["status"], "refused")
    await send(message)
