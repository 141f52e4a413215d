"""The endpoints. A client gets an answer or one line that says why not; tracebacks go to the log alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...config.base import shown
from ...config.generation import LimitsConfig
from .access import Access
from .model_process.model_client import QueueFullError
from .model_process.served_model import ServedModel
from .prometheus import CLIENT_GONE, Metrics, outcome_of
from .protocols import chat, mlflow_protocol, openai
from .protocols.openai import OUTCOME, EventStream
from .records.ratings import Recorder, take_feedback
from .records.request_end import ASKER, HANDLE, note_end
from .request_handle import ClientGoneError, RequestHandle
from .requests import (
    CompletionRequest,
    RequestError,
    as_request_error,
    check_limits,
    read_body,
    tokenize,
)
from .web_page import PAGE_FILES, page_file

RETRY_AFTER = "1"
"""Seconds that a refused client is asked to wait."""

ENDPOINTS = {
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
    "/invocations": "invocations",
}
"""Those that ask for text, with POST."""

OPEN = frozenset(("/health", "/ready", "/ping", *PAGE_FILES))
"""What is answered without the API key: they tell nothing of the model."""

THERE_IS = (
    "POST /v1/completions, /v1/chat/completions and /invocations, /v1/feedback for ratings, GET / (a page), /card, "
    "/v1/models, /health, /ready, /ping and /metrics"
)


class Service:
    """The endpoints' common state: loading until `serve_with`, then ready, then draining."""

    def __init__(
        self, name: str, limits: LimitsConfig, access: Access | None = None, recorder: Recorder | None = None
    ) -> None:
        self.name, self.limits, self.access, self.recorder = name, limits, access or Access(), recorder
        self.metrics = Metrics(self.access.key_names)
        self.serving: list[ServedModel] = []
        """Those with texts under way; the last takes new requests."""
        self.metrics.watch(
            lambda: sum(model.client.waiting for model in self.serving),
            lambda: sum(model.client.running for model in self.serving),
        )
        self.state: Literal["loading", "ready", "draining"] = "loading"
        self.in_flight = 0
        """Requests taken and not wholly answered."""
        self.created = int(time.time())

    def serve_with(self, model: ServedModel) -> None:
        """It takes requests from here on; those under way stay with the model that has begun them."""
        self.serving.append(model)
        if self.state == "loading":
            self.state = "ready"

    def serve_without(self, model: ServedModel) -> None:
        """No longer asks it for anything."""
        if model in self.serving:
            self.serving.remove(model)
        if not self.serving and self.state == "ready":
            self.state = "loading"

    @property
    def current(self) -> ServedModel:
        """The one that takes requests; RequestError where there is none, or the server drains."""
        if not self.serving or self.state != "ready":
            raise RequestError(503, f"the server is {self.state}", code=self.state)
        return self.serving[-1]

    @property
    def origin(self) -> dict[str, Any]:
        """The version and the run of the model that is served now, where there are any."""
        return dict(self.serving[-1].origin) if self.serving else {}

    # --- asking for text ---

    async def completions(self, http: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + self.limits.request_seconds
        request = openai.parse_completion(await self.body(http, deadline), self.name)
        handle, prompts = self.submit(self.current, request, http, "prompt")
        head = openai.answer_head("text_completion", "cmpl", self.name)
        handle.transcript.id = head["id"]
        if request.stream:
            return EventStream(handle, request, prompts, head, deadline)
        async with handle, asyncio.timeout_at(deadline):
            choices = [openai.choice(end, handle.logprobs_of(end)) for end in await handle.ends()]
        return JSONResponse(openai.completion(head, choices, openai.token_usage(prompts, handle)))

    async def chat(self, http: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + self.limits.request_seconds
        request, messages = chat.parse_chat(await self.body(http, deadline), self.name, self.limits)
        model = self.current
        request = chat.with_conversation(request, messages, model.tokenizer, model.prompt_tokens, model.characters)
        handle, prompts = self.submit(model, request, http, "messages")
        head = openai.answer_head("chat.completion" + ".chunk" * request.stream, "chatcmpl", self.name)
        handle.transcript.id = head["id"]
        if request.stream:
            return chat.ChatStream(handle, request, prompts, head, deadline)
        async with handle, asyncio.timeout_at(deadline):
            ends = await handle.ends()
        choices = [chat.answered(end, chat.content_logprobs(handle.logprobs_of(end), request)) for end in ends]
        return JSONResponse(openai.completion(head, choices, openai.token_usage(prompts, handle)))

    async def invocations(self, http: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + self.limits.request_seconds
        body = await self.body(http, deadline)
        model = self.current
        request = mlflow_protocol.parse_invocation(body, self.limits, full=model.tokenizer.prompt_template is None)
        handle, _ = self.submit(model, request, http, "src_txt")
        async with handle, asyncio.timeout_at(deadline):
            ends = await handle.ends()
        return JSONResponse(mlflow_protocol.predictions(ends))

    async def body(self, http: Request, deadline: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout_at(deadline):
                return await read_body(http, self.limits)
        except TimeoutError:
            raise RequestError(408, f"the body took over {self.limits.request_seconds:g} s", "body") from None

    def no_room(self, rows: int = 1) -> RequestError | None:
        """The 503 of a server that is loading, that drains, or that has no room for so many; else None."""
        try:
            model = self.current
        except RequestError as problem:
            return problem
        if not model.client.has_room(rows):
            return RequestError(503, "too many prompts are waiting; try again later", code="overloaded")
        return None

    def submit(
        self, model: ServedModel, request: CompletionRequest, http: Request, field: str
    ) -> tuple[RequestHandle, list[list[int]]]:
        """Puts the request into the model's queue; returns its prompts' ids too. RequestError where it is refused.

        field: what the client calls its prompts.
        """
        check_limits(request, self.limits, field, model.text_tokens, model.characters)
        if problem := self.no_room(len(request.prompts) * request.n):
            raise problem
        prompts = tokenize(request, model.tokenizer, model.prompt_tokens, field)
        try:
            asker = http.scope.get(ASKER)
            handle = RequestHandle(model.client, model.tokenizer, request, prompts, http.receive, asker)
        except QueueFullError:
            raise RequestError(503, "too many prompts are waiting; try again later", code="overloaded") from None
        http.scope[HANDLE], handle.transcript.model = handle, model.facts
        self.metrics.taken(sum(map(len, prompts)), asker)
        return handle, prompts

    async def feedback(self, http: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + self.limits.request_seconds
        return JSONResponse(take_feedback(await self.body(http, deadline), self.recorder))

    # --- asking about the server ---

    async def health(self) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(self) -> Response:
        return JSONResponse({"status": self.state}, 200 if self.state == "ready" else 503)

    async def ping(self) -> Response:
        """/ready, as MLflow's scoring server calls and answers it."""
        return Response("\n", 200 if self.state == "ready" else 503, media_type="application/json")

    async def metrics_text(self) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def page(self, http: Request) -> Response:
        return page_file(http.url.path)

    async def card(self) -> Response:
        if not self.serving:
            raise RequestError(503, f"the server is {self.state}", code=self.state)
        return JSONResponse({**self.serving[-1].facts, "feedback": self.recorder is not None})

    async def models(self) -> Response:
        return JSONResponse({"object": "list", "data": [openai.model_entry(self.name, self.created) | self.origin]})

    async def model(self, name: str) -> Response:
        openai.check_model(name, self.name)
        return JSONResponse(openai.model_entry(self.name, self.created) | self.origin)


def create_app(service: Service) -> ASGIApp:
    app = FastAPI(openapi_url=None)  # its pages would load scripts from elsewhere
    for path, name in ENDPOINTS.items():
        app.add_route(path, getattr(service, name), methods=["POST"])  # FastAPI's own would look for parameters
    app.add_route("/v1/feedback", service.feedback, methods=["POST"])
    endpoints: dict[str, Callable[..., Any]] = {
        "/v1/models": service.models,
        "/v1/models/{name:path}": service.model,
        "/health": service.health,
        "/ready": service.ready,
        "/ping": service.ping,
        "/metrics": service.metrics_text,
        "/card": service.card,
        **dict.fromkeys(PAGE_FILES, service.page),
    }
    for path, endpoint in endpoints.items():
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_model=None)
    for kind in (RequestError, TimeoutError, ClientGoneError, ClientDisconnect, HTTPException, Exception):
        app.add_exception_handler(kind, error_response)
    return Observer(app, service)


async def error_response(http: Request, error: Exception) -> Response:
    """One line that says what was wrong, in the form of the protocol that was used."""
    if isinstance(error, ClientGoneError | ClientDisconnect):
        return Response(status_code=CLIENT_GONE)
    headers: Mapping[str, str] = {}
    if isinstance(error, HTTPException):  # the router's: no such path, another method
        what = f"{http.method} {shown(http.url.path)}: {error.detail}; there is {THERE_IS}"
        headers, error = error.headers or {}, RequestError(error.status_code, what)
    response = problem_response(http.url.path, as_request_error(error))
    response.headers.update(headers)  # Allow
    return response


def problem_response(path: str, problem: RequestError) -> Response:
    """A RequestError as the protocol of this path has it."""
    form = mlflow_protocol.mlflow_error if path == "/invocations" else openai.openai_error
    headers = {503: {"Retry-After": RETRY_AFTER}, 401: {"WWW-Authenticate": "Bearer"}}.get(problem.status)
    return JSONResponse(form(problem), problem.status, headers)


class Observer:
    """ASGI middleware: refuses who may not ask, and whom there is no room for; counts and times the requests for
    text, from the first byte to the last of the answer."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, service = scope["path"], self.service
        endpoint = ENDPOINTS.get(path) if scope["method"] == "POST" else None
        # Here, so that what is refused costs as little as can be.
        problem = service.access.problem(scope["headers"], path in OPEN) or (service.no_room() if endpoint else None)
        app = problem_response(path, problem) if problem else self.app
        if endpoint is None:
            return await app(scope, receive, send)
        scope[ASKER] = service.access.asker(scope["headers"])
        arrived = time.monotonic()
        self.service.in_flight += 1
        send = partial(noting_status, scope, send)
        try:
            await app(scope, receive, send)
        finally:
            self.service.in_flight -= 1
            ended = scope, endpoint, scope.get(OUTCOME, "failed"), time.monotonic() - arrived
            note_end(*ended, service.metrics, service.recorder)


async def noting_status(scope: Scope, send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        scope[OUTCOME] = outcome_of(message["status"])
    await send(message)
