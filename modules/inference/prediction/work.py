"""The work of predict from its rows to the written target, whatever tracks or shows it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import pyarrow as pa

from ...config.assignments import dotted_items
from ...config.effects.key_effects import Effect, effect_of
from ...config.prediction import PredictConfig
from ...data.conversations.message_rows import Conversation
from ...data.quarantine import DataError
from ...model.decoding.batch_rows import check_biases
from ...tokenizer.lost_text import lost_named
from ...tokenizer.tokenizer import Tokenizer
from ..row_constraints import require_constraint
from ..text_generator import TextGenerator
from .answering import WINDOW_CHARACTERS, WINDOW_ROWS, RowAnswer, answer_window, shown_answer, windows
from .journal import Answered, Journal
from .source_rows import Source, SourceRow, Survey
from .target_files import WRITERS, column_types

logger = logging.getLogger("moyun.generation")

SAMPLES = 3
"""Rows, and rows without an answer, that a result shows."""


Progress = Callable[[int, int, int], None]
"""Takes the rows that are done by now, and of a batch the rows and the tokens that were written."""


@dataclass
class Written:
    """What came of all rows, those of earlier attempts too."""

    rows: int = 0
    errors: int = 0
    stopped: int = 0
    """Answers that ended by themselves."""
    tokens: int = 0
    digest: str = ""
    """SHA-256 of the target."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Of the first rows with an answer: prompt, text, stopped."""
    first_errors: list[str] = field(default_factory=list)
    """Where the first rows without an answer stand, and why they have none."""

    def count(self, source: Source, row: SourceRow, answer: RowAnswer, text: str | None) -> None:
        self.rows += 1
        self.tokens += answer.tokens
        self.stopped += bool(answer.stopped)
        if answer.error:
            self.errors += 1
            if len(self.first_errors) < SAMPLES:
                self.first_errors.append(f"{source.at(row)}: {answer.error}")
        elif len(self.samples) < SAMPLES:
            asked = source.asked(row)
            prompt = asked.in_lines if isinstance(asked, Conversation) else str(asked)
            self.samples.append({"prompt": prompt, "text": text, "stopped": answer.stopped})


@dataclass(frozen=True)
class Prediction:
    """Rows, the model to answer them, and the journal of its answers."""

    config: PredictConfig
    source: Source
    survey: Survey
    journal: Journal
    full: bool
    """Whether answers begin with the prompt."""

    @property
    def new_columns(self) -> dict[str, pa.DataType]:
        config = self.config
        return {config.column: pa.string(), config.stopped_column: pa.bool_(), config.error_column: pa.string()}

    def answer(self, generator: TextGenerator, progress: Progress) -> None:
        """Answers what isn't answered yet."""
        earlier = Answered(self.journal)
        first = rows = 0
        warned = False
        with self.journal.appending() as append:
            for window in windows(self.source.unchanged(self.survey)):
                done = earlier.up_to(first + len(window))
                rows += len(done)
                if len(done) < len(window):
                    texts = [self.source.asked(row) for row in window]
                    warned = warned or warn_of_lost(texts, generator.tokenizer)
                    limits = self.config.generation, self.config.max_batch_tokens, self.source.column
                    inside = {number - first for number in done}
                    for answers in answer_window(generator, texts, *limits, inside):
                        append({first + number: answer for number, answer in answers.items()})
                        rows += len(answers)
                        progress(rows, len(answers), sum(answer.tokens for answer in answers.values()))
                first += len(window)

    def write(self) -> Written:
        """The target, of the answers in the journal."""
        written = Written()
        columns = column_types(self.survey.columns, self.survey.types, self.new_columns)

        def rows_with_answers() -> Iterator[Sequence[Mapping[str, Any]]]:
            answered, first = Answered(self.journal), 0
            for window in windows(self.source.unchanged(self.survey)):
                answers = answered.up_to(first + len(window))
                yield [self.finished(row, answers[first + n], written) for n, row in enumerate(window)]
                first += len(window)

        def write(stream: IO[bytes]) -> None:
            WRITERS[str(self.config.format)](stream, columns, rows_with_answers())

        written.digest = self.journal.finish(write)
        return written

    def finished(self, row: SourceRow, answer: RowAnswer, written: Written) -> dict[str, Any]:
        shown = shown_answer(answer, self.source.asked(row), self.full)
        written.count(self.source, row, answer, shown["text"])
        return {**row.values, **dict(zip(self.new_columns, shown.values(), strict=True))}


def warn_of_lost(texts: Sequence[object], tokenizer: Tokenizer) -> bool:
    """Whether the model doesn't see all of these texts, of which it warns."""
    lost = lost_named([str(text) for text in texts if isinstance(text, str | Conversation)], tokenizer)
    if lost:
        logger.warning("the model doesn't see all of some rows: its tokenizer loses %s", lost)
    return bool(lost)


def made_of(config: PredictConfig, survey: Survey, weights: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """All that answers follow from; with anything else they are others. weights: their SHA-256."""
    effect = effect_of(PredictConfig)
    keys = {key: value for key, value in dotted_items(asdict(config)) if effect(key) is Effect.RESULT}
    return {
        "model's weights": weights,
        "model's tokenizer or prompt template": tokenizer.fingerprint,
        "source's rows": survey.digest,
        "window": [WINDOW_ROWS, WINDOW_CHARACTERS],
        **keys,
    }


def require_usable(config: PredictConfig, survey: Survey, tokenizer: Tokenizer) -> None:
    """ValueError where a column that is to be added is in the source already, a bias is of no token of the model, or no
    answer can be held to what is asked for."""
    check_biases(config.generation, tokenizer.vocab_size)
    require_constraint(tokenizer, config.generation)
    for key, name in config.new_columns.items():
        if name in survey.columns:
            raise DataError(
                f"source={config.source} has a column {name!r} already: give {key}=NAME for the new one; the source's "
                f"columns are {', '.join(survey.columns)}"
            )


def require_another_place(config: PredictConfig, files: Sequence[Any]) -> None:
    """ValueError where the target is one of the files that are read."""
    if config.place.resolve() in [file.resolve() for file in files]:
        raise ValueError(f"target={config.place} is read as source: name another file")
