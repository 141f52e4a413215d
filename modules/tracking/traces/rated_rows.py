"""Rows to train on, of served requests and what people thought of the answers (prepare source=traces)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Assessment, LifecycleStage, Trace
from mlflow.tracing.client import TracingClient

from ...config.data import TRACES, PrepareConfig
from ...data.corpora.folders import RATINGS, REJECTED, GivenRows
from ...data.quarantine import DataError
from ...data.reading.column_names import MESSAGES
from ...system.redaction import redact_text
from ..run_selection import EXPERIMENT, experiment_for, restoring
from .served_trace import CORRECTION, ENDPOINT, INDEX, RATING

PAGE = 100
"""Traces that are asked for at once."""

WHERE = "start the server with traces=1 (a share of the requests), or name another with"

Turns = list[dict[str, str]]
"""Messages, the last of them a user's. A prompt is a conversation of one."""


@dataclass
class Example:
    """One text of an answer."""

    question: Turns
    """Empty where it was asked in token ids."""
    text: str
    finish: str | None
    rating: bool | None = None
    correction: str | None = None


def rows_of_traces(config: PrepareConfig, section: str = "") -> GivenRows | None:
    """None for another source. Raises DataError where there are none.

    section: what stands before the keys where they are typed, for messages.
    """
    if config.source != TRACES:
        return None
    name, experiment_id = experiment_of(config, section)
    counts: Counter[str] = Counter()
    examples = [example for trace in served_traces(experiment_id, counts) for example in examples_in(trace)]
    if not counts["traces"]:
        others = counts["traces of other makers"]
        beside = f", only {others:,} of other makers" if others else ""
        hint = f"{section}experiment=NAME (a file or folder of that name is {section}source=./traces)"
        raise DataError(f"experiment {name} has no traces of served requests{beside}: {WHERE} {hint}")
    rows = rows_of(examples, config.take, counts)
    if not rows:
        told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        more = "" if config.take == "all" else f", or take unrated ones too with {section}take=all"
        rate = f"rate some on the server's page or with POST /v1/feedback{more}"
        raise DataError(f"experiment {name} gives no rows with {section}take={config.take} ({told}); {rate}")
    found = {what: count for what, count in counts.items() if count}
    return GivenRows(rows, {"experiment": name, "take": config.take, "traces": found})


def experiment_of(config: PrepareConfig, section: str) -> tuple[str, str]:
    """(name, id) of the experiment in which the traces are."""
    client = MlflowClient()
    if config.experiment:
        found = client.get_experiment_by_name(config.experiment)
    else:
        number = experiment_for(config.tracking, make=False)
        found = client.get_experiment(number) if number else None
    if found is None:
        name = config.experiment or config.tracking.experiment_name or EXPERIMENT
        store = redact_text(mlflow.get_tracking_uri())
        raise DataError(f"there is no experiment {name} in {store}: {WHERE} {section}experiment=NAME")
    if found.lifecycle_stage == LifecycleStage.DELETED:
        command = restoring("experiments", found.experiment_id)
        raise DataError(f"experiment {found.name} was deleted: `{command}` brings it back")
    return str(found.name), str(found.experiment_id)


def served_traces(experiment_id: str, counts: Counter[str]) -> Iterator[Trace]:
    """Those of moyun's server, oldest first."""
    client, token = TracingClient(), None
    while True:
        page = client.search_traces(
            locations=[experiment_id],
            max_results=PAGE,
            order_by=["timestamp_ms ASC"],
            include_spans=False,
            page_token=token,
        )
        ours = [trace.info.trace_id for trace in page if ENDPOINT in trace.info.tags]
        counts["traces"] += len(ours)
        counts["traces of other makers"] += len(page) - len(ours)
        by_id = {trace.info.trace_id: trace for trace in client.batch_get_traces(ours)}
        yield from (by_id[number] for number in ours if number in by_id and by_id[number].data.spans)
        if not (token := page.token):
            return


def examples_in(trace: Trace) -> list[Example]:
    span = trace.data.spans[0]
    asked, choices = span.inputs, span.outputs["choices"]
    prompts = [asked["messages"]] if "messages" in asked else asked["prompt"]
    if not isinstance(prompts, list) or is_ids(prompts):
        prompts = [prompts]
    texts = len(choices) // len(prompts)
    examples = []
    for number, choice in enumerate(choices):
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        examples.append(Example(turns_of(prompts[number // texts]), text, choice["finish_reason"]))
    for assessment in sorted(
        trace.info.assessments, key=lambda found: found.create_time_ms or 0
    ):  # the last one counts
        note(assessment, examples)
    return examples


def is_ids(prompt: object) -> bool:
    return isinstance(prompt, list) and all(isinstance(part, int) for part in prompt)


def turns_of(prompt: object) -> Turns:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [] if is_ids(prompt) or not isinstance(prompt, list) else prompt


def note(assessment: Assessment, examples: Sequence[Example]) -> None:
    """Of an assessment that was made in MLflow itself the first text is meant."""
    index = str((assessment.metadata or {}).get(INDEX, "0"))
    if assessment.valid is False or not index.isdecimal() or int(index) >= len(examples):
        return
    example = examples[int(index)]
    if assessment.name == RATING and assessment.feedback and isinstance(assessment.feedback.value, bool):
        example.rating = assessment.feedback.value
    elif assessment.name == CORRECTION and assessment.expectation and isinstance(assessment.expectation.value, str):
        example.correction = assessment.expectation.value


def rows_of(examples: Sequence[Example], take: str, counts: Counter[str]) -> list[dict[str, Any]]:
    """A row for each question and text that is taken, with all that was thought of it."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    taken = [
        example for example in examples if (reason := why_left_out(example, take)) is None or counts.update([reason])
    ]
    for example in taken:
        text = target_of(example)
        rows.setdefault(key_of(example, text), {"turns": example.question, "text": text, RATINGS: [], REJECTED: []})
        counts["cut off by max_tokens"] += example.correction is None and example.finish == "length"
    for example in examples:
        if example.correction is not None and (row := rows.get(key_of(example, example.correction))):
            row[RATINGS].append("corrected")
        if example.rating is not None and (row := rows.get(key_of(example, example.text))):
            row[RATINGS].append("up" if example.rating else "down")
    disliked: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for example in examples:
        if example.rating is False or example.correction is not None:
            disliked[json.dumps(example.question)][example.text] = None
    for (question, text), row in rows.items():
        row[REJECTED] = [other for other in disliked[question] if other != text]
    return in_columns(list(rows.values()))


def why_left_out(example: Example, take: str) -> str | None:
    """The reason; None for a text that is taken."""
    if not example.question:
        return "asked in token ids"
    if not all(text.strip() for text in (*(part["content"] for part in example.question), target_of(example))):
        return "without a prompt or a text"
    if example.correction is not None:
        return None
    if example.rating is False:
        return "thumbs down without a correction"
    if take == "corrected":
        return "without a correction"
    if example.finish not in ("stop", "length"):
        return "broken off"
    return "not rated" if example.rating is None and take == "good" else None


def target_of(example: Example) -> str:
    return example.text if example.correction is None else example.correction


def key_of(example: Example, text: str) -> tuple[str, str]:
    return json.dumps(example.question), text


def in_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs, if each is a single question; else all as conversations, in which a pair is one of a single turn."""
    pairs = all(len(row["turns"]) == 1 for row in rows)
    return [
        (pair_in(row) if pairs else conversation_in(row)) | {name: row[name] for name in (RATINGS, REJECTED)}
        for row in rows
    ]


def pair_in(row: dict[str, Any]) -> dict[str, Any]:
    return {"src_txt": row["turns"][0]["content"], "tgt_txt": row["text"]}


def conversation_in(row: dict[str, Any]) -> dict[str, Any]:
    return {MESSAGES: [*row["turns"], {"role": "assistant", "content": row["text"]}]}
