"""Records of answers as a server's Recorder gets them, made without a server."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Sequence
from typing import Any

from modules.config.generation import GenerationConfig
from modules.inference.server.records.transcript import AnswerRecord, WrittenText
from modules.inference.server.requests import CompletionRequest
from modules.tokenizer.prompt_template import Message

CARD = {"name": "poet", "parameters": 1, "run": {"run_id": "r" * 32, "scores": {"val/loss": 2.5}}}

BEGAN = itertools.count(int(time.time()) - 100_000)
"""One after the other, as a list of traces is in the order of their times."""


def answer_record(
    prompts: Sequence[str | list[int]] = ("春",),
    texts: Sequence[str] = ("眠不觉晓",),
    messages: Sequence[tuple[str, str]] = (),
    finish: str | None = "stop",
    outcome: str = "ok",
    endpoint: str = "completions",
    **model: Any,
) -> AnswerRecord:
    """Of a completion, or of a chat where there are messages."""
    turns = [Message(role, text) for role, text in messages]
    request = CompletionRequest(
        [[1, 2]] if messages else list(prompts), GenerationConfig(seed=1), n=len(texts) // len(prompts), messages=turns
    )
    return AnswerRecord(
        id=f"{'chatcmpl' if messages else 'cmpl'}-{uuid.uuid4().hex}",
        told=True,
        endpoint="chat" if messages else endpoint,
        outcome=outcome,
        request=request,
        texts=[WrittenText(text, finish) for text in texts],
        began=next(BEGAN),
        seconds=1.5,
        first_text_seconds=0.25,
        prompt_tokens=3,
        generated_tokens=5,
        model=CARD | model,
    )
