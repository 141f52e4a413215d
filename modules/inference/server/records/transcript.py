"""What a request asks and what becomes of it: noted while it is answered, and told to a Recorder at its end."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..requests import CompletionRequest

if TYPE_CHECKING:
    from ..model_process.messages import Event


@dataclass(frozen=True)
class WrittenText:
    text: str
    """Without the prompt, also where the answer begins with it; of a client that has gone as much as it was sent."""
    finish: str | None
    """As OpenAI has it; None for a text that didn't come to its end."""


@dataclass(frozen=True)
class AnswerRecord:
    id: str
    """The answer's."""
    told: bool
    """Whether clients are told the id, and so can rate the answer: /invocations tells none."""
    endpoint: str
    outcome: str
    """One of prometheus.OUTCOMES."""
    request: CompletionRequest
    texts: Sequence[WrittenText]
    """Those of the first prompt, then those of the second."""
    began: float
    """Seconds since 1970."""
    seconds: float
    first_text_seconds: float | None
    """To the first piece of text; None where all came in one."""
    prompt_tokens: int
    generated_tokens: int
    model: Mapping[str, Any]
    """Its card."""

    @property
    def size(self) -> int:
        """About how many characters it holds."""
        config, asked = self.request.config, [text for _, text in self.request.messages]
        others = [config.json_schema or "", config.regex or "", *config.stop, *config.logit_bias]
        written = [text.text for text in self.texts]
        return sum(map(len, [*self.request.prompts, *asked, *others, *written]))


class Transcript:
    """Of one request, from the moment that it was accepted."""

    def __init__(self, request: CompletionRequest, prompts: Sequence[Sequence[int]]) -> None:
        self.request, self.prompt_tokens = request, sum(map(len, prompts))
        self.id: str | None = None
        """The answer's, where it has one."""
        self.model: Mapping[str, Any] = {}
        self.texts = [""] * (len(prompts) * request.n)
        self.finishes: list[str | None] = [None] * len(self.texts)
        self.accepted = time.monotonic()
        self.first_text_seconds: float | None = None

    def add(self, event: Event) -> None:
        """A piece of a text, without the prompt that the answer may begin with."""
        in_pieces = self.request.stream or not event.finish
        if event.text and in_pieces and self.first_text_seconds is None:
            self.first_text_seconds = time.monotonic() - self.accepted
        self.texts[event.row] += event.text
        self.finishes[event.row] = event.finish

    def ended(self, endpoint: str, outcome: str, seconds: float, generated_tokens: int) -> AnswerRecord:
        """The record of a request that ends now, after so many seconds."""
        texts = zip(self.texts, self.finishes, strict=True)
        return AnswerRecord(
            self.id or f"{endpoint}-{uuid.uuid4().hex}",
            self.id is not None,
            endpoint,
            outcome,
            self.request,
            [WrittenText(text, finish) for text, finish in texts],
            time.time() - seconds,
            seconds,
            self.first_text_seconds,
            self.prompt_tokens,
            generated_tokens,
            self.model,
        )
