"""A served request as a trace of one span, and a rating as MLflow's assessments of it.

Ids follow from the answer's (cmpl-HEX → tr-HEX), so a trace that is sent twice is one in the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from mlflow.entities import (
    Assessment,
    AssessmentSource,
    Expectation,
    Feedback,
    Span,
    SpanType,
    TraceInfo,
    TraceLocation,
    TraceState,
)

from ...inference.server.records.ratings import VALUES, Rating
from ...inference.server.records.transcript import AnswerRecord
from ...system.redaction import hide_values

ENDPOINT, OUTCOME, RUN, VERSION = "moyun.endpoint", "moyun.outcome", "moyun.run_id", "moyun.version"
"""Tags of a trace: those of moyun's have the first."""

RATING, CORRECTION = "user_feedback", "expected_response"
"""Names of the assessments; the second is that which MLflow's own judges read."""

INDEX = "index"
"""Their metadata: which of the answer's texts they are about."""

PREVIEW = 1000
"""Characters of prompt and text that MLflow's list of traces has."""


def trace_id_of(answer_id: str) -> str:
    return f"tr-{answer_id[-32:]}"


def trace_of(record: AnswerRecord, experiment_id: str, model_id: str | None, version: str | None) -> TraceInfo:
    asked, written = preview_of(asked_of(record)), preview_of([text.text for text in record.texts])
    run_id = (record.model.get("run") or {}).get("run_id")
    tags = {
        "mlflow.traceName": record.endpoint,
        ENDPOINT: record.endpoint,
        OUTCOME: record.outcome,
        RUN: run_id,
        VERSION: version,
    }
    metadata = {
        "mlflow.trace_schema.version": "3",
        "mlflow.modelId": model_id,
        "mlflow.trace.tokenUsage": json.dumps(token_usage(record)),
    }
    return TraceInfo(
        trace_id_of(record.id),
        TraceLocation.from_experiment_id(experiment_id),
        int(record.began * 1000),
        TraceState.OK if record.outcome == "ok" else TraceState.ERROR,
        asked,
        written,
        record.id,
        int(record.seconds * 1000),
        {name: value for name, value in metadata.items() if value},
        {name: str(value) for name, value in tags.items() if value},
    )


def span_of(record: AnswerRecord) -> Span:
    trace_id, began = trace_id_of(record.id), int(record.began * 1e9)
    attributes = {
        "mlflow.traceRequestId": trace_id,
        "mlflow.spanType": SpanType.CHAT_MODEL if record.request.messages else SpanType.LLM,
        "mlflow.spanInputs": asked_of(record),
        "mlflow.spanOutputs": {"choices": list(choices_of(record))},
        "mlflow.chat.tokenUsage": token_usage(record),
        "mlflow.llm.model": record.model.get("name"),
        "parameters": asdict(record.request.config) | {"n": record.request.n, "stream": record.request.stream},
        "time_to_first_text_seconds": record.first_text_seconds,
    }
    if record.request.messages:
        attributes["mlflow.message.format"] = "openai"
    status = {"code": "STATUS_CODE_OK"}
    if record.outcome != "ok":
        status = {"code": "STATUS_CODE_ERROR", "message": record.outcome}
    return Span.from_dict(
        {
            "name": record.endpoint,
            "trace_id": trace_id,
            "span_id": trace_id[-16:],
            "parent_span_id": None,
            "start_time_unix_nano": began,
            "end_time_unix_nano": began + int(record.seconds * 1e9),
            "status": status,
            "attributes": {name: in_json(value) for name, value in attributes.items() if value is not None},
        }
    )


def assessments_of(rating: Rating) -> Iterator[Assessment]:
    about: dict[str, Any] = {
        "source": AssessmentSource("HUMAN"),
        "metadata": {INDEX: str(rating.index or 0)},
        "create_time_ms": int(rating.at * 1000),
        "last_update_time_ms": int(rating.at * 1000),
    }
    comment = storable(rating.comment) or None
    yield Feedback(RATING, VALUES[rating.value], rationale=comment, **about)
    if rating.correction is not None:
        yield Expectation(CORRECTION, hide_values(rating.correction), **about)


def asked_of(record: AnswerRecord) -> dict[str, Any]:
    """What the client sent as its prompts."""
    request = record.request
    if request.messages:
        return {"messages": [{"role": role, "content": text} for role, text in request.messages]}
    return {"prompt": request.prompts[0] if len(request.prompts) == 1 else request.prompts}


def choices_of(record: AnswerRecord) -> Iterator[dict[str, Any]]:
    """In the form of OpenAI's answers."""
    for index, text in enumerate(record.texts):
        chat = {"message": {"role": "assistant", "content": text.text}}
        yield {
            "index": index,
            **(chat if record.request.messages else {"text": text.text}),
            "finish_reason": text.finish,
        }


def token_usage(record: AnswerRecord) -> dict[str, int]:
    read, written = record.prompt_tokens, record.generated_tokens
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def in_json(value: Any) -> str:
    """Without what the environment holds that is secret."""
    return json.dumps(without_secrets(value), ensure_ascii=False)


def without_secrets(value: Any) -> Any:
    """Hidden in each text by itself: a secret of digits may look like a number, which has to stay one."""
    if isinstance(value, dict):
        return {name: without_secrets(part) for name, part in value.items()}
    if isinstance(value, list):
        return [without_secrets(part) for part in value]
    return hide_values(value) if isinstance(value, str) else value


def preview_of(value: Any) -> str:
    """The one text in it, or all of it in JSON."""
    while isinstance(value, list | dict) and len(value) == 1:
        value = next(iter(value.values() if isinstance(value, dict) else value))
    if isinstance(value, dict) and "content" in value:
        value = value["content"]
    return storable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:PREVIEW]


def storable(text: str) -> str:
    """PostgreSQL keeps no NUL."""
    return hide_values(text).replace("\0", "\ufffd")
