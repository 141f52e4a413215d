"""predict on the terminal: what will be done, how far it is, and what came of it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from modules.config.prediction import PredictConfig
from modules.data.reading.column_names import MESSAGES
from modules.inference.prediction.source_rows import Source, Survey
from modules.inference.prediction.work import Progress, Written
from modules.tokenizer.tokenizer import Tokenizer

from .printing import progress_of, show

LONGEST_SAMPLE = 200
"""Characters of a text on the terminal."""


def prediction_plan(
    config: PredictConfig, source: Source, survey: Survey, tokenizer: Tokenizer, goes_on: bool
) -> dict[str, str]:
    template = (tokenizer.for_conversations if source.holds_conversations else tokenizer).prompt_template
    mode = (
        "continues texts: it has no prompt template" if template is None else f"answers, by its template {template!r}"
    )
    return {
        "rows": f"{survey.rows:,} of {config.source}",
        "model": f"{config.model}, which {mode}",
        "text read": source.column,
        "columns kept": ", ".join(survey.columns),
        "columns added": ", ".join(config.new_columns.values()),
        config.column: "prompt and continuation" if source.answered_in_full(tokenizer) else "without the prompt",
        "target": f"{config.place} ({config.format})" + (": goes on where it was" if goes_on else ""),
    }


class Speed:
    """Of what is answered now, whatever was answered by an earlier attempt."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.seconds = 0.0
        self.rows = self.tokens = 0

    def add(self, rows: int, tokens: int) -> None:
        self.rows += rows
        self.tokens += tokens
        self.seconds = time.monotonic() - self.begun

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.tokens else None

    def time_left(self, rows: int) -> timedelta:
        return timedelta(seconds=round(self.seconds / max(1, self.rows) * rows))


@contextmanager
def progress_of_rows(of: int, speed: Speed) -> Iterator[Progress]:
    """A bar with rows, tokens a second and the time left."""
    with progress_of("predict") as report:

        def progress(done: int, rows: int, tokens: int) -> None:
            speed.add(rows, tokens)
            pace = f"{speed.tokens_per_second or 0:,.0f} tokens/s, {speed.time_left(of - done)} left"
            report("rows", done / of, f"{done:,} of {of:,} rows, {pace}")

        yield progress


def show_written(config: PredictConfig, survey: Survey, written: Written, run_id: str, speed: float | None) -> None:
    lines = {
        "rows": f"{written.rows:,}",
        "ended by themselves": f"{written.stopped:,}",
        "without an answer": f"{written.errors:,}",
    }
    if written.errors:
        lines["  as"] = "\n".join(written.first_errors)
    if speed:
        lines["tokens a second"] = f"{speed:,.0f}"
    show("predict: done", lines | {"answers": str(config.place), "run": run_id, "next": next_command(config, survey)})
    if written.samples:
        show("samples", {in_short(sample["prompt"]): in_short(sample["text"]) for sample in written.samples})


def next_command(config: PredictConfig, survey: Survey) -> str:
    """Scores, where the rows have answers of their own; else the same model for others."""
    model = shlex.quote(f"model={config.model}")
    if not survey.columns.keys().isdisjoint(("tgt_txt", MESSAGES)) and config.split is None:
        return f"python -m pipelines.evaluate {model} {shlex.quote(f'data.test_path={config.source}')}"
    return f"python -m pipelines.serve {model}"


def in_short(text: str) -> str:
    line = " / ".join(text.split("\n"))
    return line if len(line) <= LONGEST_SAMPLE else f"{line[:LONGEST_SAMPLE]}…"
