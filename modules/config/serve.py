"""What the server can be told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .sections import not_positive, too_small
from .stages import CommandConfig


@dataclass
class LimitsConfig:
    """What one request may ask for, and how much may be under way. What is over a limit is refused before any work."""

    batch_rows: int = 16
    """Prompts that are continued at once; the more, the more text a second and the longer each waits for its own."""
    queue_rows: int = 32
    """Prompts that may wait for a place in the batch; what comes beyond gets 503 with Retry-After at once."""
    request_rows: int = 32
    """Prompts in one request."""
    body_bytes: int = 1048576
    """Bytes of a request's body."""
    prompt_tokens: int | None = None
    """Tokens of a prompt; unset: as many as the model has positions, but one to write to."""
    max_new_tokens: int = 1024
    """The highest max_new_tokens (max_tokens) that a request may ask for."""
    request_seconds: float = 60.0
    """From the end of a request's headers, for which there are 10 s, to its answer's last byte; what takes longer is
    stopped and gets 504."""
    drain_seconds: float = 30.0
    """After SIGTERM: how long requests that were accepted may still take."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(
            self, 1, "batch_rows", "queue_rows", "request_rows", "body_bytes", "prompt_tokens", "max_new_tokens"
        )
        yield from not_positive(self, "request_seconds", "drain_seconds")
        if self.request_rows > self.queue_rows:
            yield f"request_rows ({self.request_rows}) is over queue_rows ({self.queue_rows}): it could never be queued"


@dataclass
class ServeConfig(CommandConfig):
    """A model behind HTTP: OpenAI's completions and MLflow's invocations, many requests in one running batch."""

    model: str = "models:/moyun@champion"
    """A model folder or a models:/ URI; it is verified before anything is served."""
    name: str | None = None
    """What clients call it, in OpenAI's `model`; unset: its name in the registry, or the folder's."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication: put a reverse proxy in front before opening it to others."""
    port: int = 8000
    """Port to listen on; 0: any free one."""
    backend: Literal["torch", "llama_cpp"] = "torch"
    """What computes. Only torch serves here; llama_cpp is for generate and for `mlflow models serve`."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format to compute in; auto: the one that the model is stored in (float16 only on a GPU).

    int8: 8-bit weights and products, on a CPU only; the fastest, and a quarter of float32's memory."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def complaints(self) -> Iterator[str]:
        if not 0 <= self.port < 2**16:
            yield f"port ({self.port}) must be from 0 to 65535"
        if not self.host:
            yield "host must not be empty; 127.0.0.1 is this machine alone, 0.0.0.0 every network it is in"
        if self.backend == "llama_cpp":
            yield (
                "backend=llama_cpp: no rows can join llama.cpp's running batch here; use backend=torch, "
                "or `mlflow models serve` with model_config's backend"
            )
