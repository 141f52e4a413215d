"""What generate and predict can be told: a text in and out, or a file of rows in and one with answers out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .base import CHINESE, MISSING, MODEL, PATH, POEMS, CommandConfig, StageConfig, too_small
from .data import AskedTaskConfig
from .generation import GenerationConfig

MAX_BATCH_TOKENS = 8192

WRITTEN = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
"""Ending of a target → its format."""

OF_SOURCES = {**WRITTEN, ".json": "jsonl", ".txt": "jsonl"}
"""Ending of a source → the format of a target without an ending; of any other source, as a folder, jsonl."""


@dataclass
class GenerateConfig(CommandConfig):
    """Text from a model, to the terminal."""

    model: str | None = field(default=None, metadata=MODEL)
    """A model folder or a models:/ URI. Unset: of the two that come with moyun models/chinese for a task=NAME other
    than poetry, else models/poems."""
    prompt: str = ""
    """What to continue; `prompt=` may be left out: python -m pipelines.generate "白日依山尽，". A prompt that begins
    like one of these keys needs it: prompt='seed=…'."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format to compute in; auto: the one that the model is stored in (float16 only on a GPU).

    int8: 8-bit weights and products, on a CPU only; the fastest, and a quarter of float32's memory."""
    task: AskedTaskConfig = field(default_factory=AskedTaskConfig)
    """task=NAME asks as that task does: its prompt template, and how its answers are written (conf/task/NAME.yaml)."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """Here its keys may be given without the section: temperature=0.5."""

    @property
    def chosen_model(self) -> str:
        return self.model or (POEMS if self.task.name in ("", "poetry") else CHINESE)


@dataclass
class PredictConfig(StageConfig):
    """A file of rows in, the same rows with a model's answers out."""

    model: str = field(default="models:/moyun@champion", metadata=MODEL)
    """A model folder or a models:/ URI."""
    source: str = field(default=MISSING, metadata=PATH)
    """Rows to answer: a file (csv, tsv, json, jsonl, parquet, txt; .gz too), several ('[a.csv,b.csv]', 'data/*.csv'), a
    folder, or a hub name."""
    split: str | None = None
    """Which rows, where the source is a folder of splits or a hub dataset: train, validation, test."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which column holds the text, where it isn't called src_txt: columns.question=src_txt; or conversations, where
    they aren't called messages: columns.conversations=messages."""
    target: str | None = field(default=None, metadata=PATH)
    """The file to write: .csv, .tsv, .jsonl or .parquet; without an ending in the source's format. Unset:
    NAME.answers.csv (or the like) beside the source."""
    column: str = "text"
    """Column of the answers."""
    stopped_column: str = "stopped"
    """Column that says whether the answer ended by itself, and not for want of tokens or positions."""
    error_column: str = "error"
    """Column that says why a row has no answer."""
    return_full_text: bool | None = None
    """Whether answers begin with the prompt; unset: where the model has no prompt template, and so continues texts."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format to compute in; auto: the one that the model is stored in (float16 only on a GPU).

    int8: 8-bit weights and products, on a CPU only; the fastest, and a quarter of float32's memory."""
    task: AskedTaskConfig = field(default_factory=AskedTaskConfig)
    """task=NAME asks as that task does: its prompt template, and how its answers are written (conf/task/NAME.yaml)."""
    max_batch_tokens: int = MAX_BATCH_TOKENS
    """The most tokens, read and written, of the rows that are answered at once."""
    force: bool = False
    """Replace a target that is there, and begin anew where what was begun is of another model, rows or parameters."""
    log_file: bool = False
    """Copy the target into the run as an artifact."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """Here its keys may be given without the section: temperature=0.5. generation.seed is `seed`, unless given."""

    @property
    def format(self) -> str | None:
        """Of the target: csv, tsv, jsonl or parquet; None where it has another ending."""
        given = Path(self.target or "").suffix.lower()
        return WRITTEN.get(given) if given else OF_SOURCES.get(self.source_ending, "jsonl")

    @property
    def source_ending(self) -> str:
        name = self.source.strip("[]'\" ").lower()
        return Path(name.removesuffix(".gz")).suffix

    @property
    def place(self) -> Path:
        """The file to write."""
        if self.target:
            return Path(self.target)
        name, known = Path(self.source).name, self.source_ending in OF_SOURCES
        stem = name[: name.lower().rindex(self.source_ending)] if known else name
        return Path(self.source).with_name(f"{stem}.answers.{self.format}")

    @property
    def new_columns(self) -> dict[str, str]:
        """Key → the column that it names."""
        return {key: getattr(self, key) for key in ("column", "stopped_column", "error_column")}

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        yield from too_small(self, 1, "max_batch_tokens")
        if self.format is None:
            yield f"target={self.target}: must end in one of {', '.join(WRITTEN)}, which say the format"
        if not self.target and any(sign in self.source for sign in "[]*?"):
            yield f"target must be given with source={self.source}: a file that ends in one of {', '.join(WRITTEN)}"
        for name, text in self.columns.items():
            if text not in ("src_txt", "messages"):
                yield (
                    f"columns.{name}={text}: must be src_txt or messages, all that is read; any other column is kept "
                    "as it is"
                )
        names = list(self.new_columns.values())
        for key, name in self.new_columns.items():
            if not name.strip():
                yield f"{key} must not be empty"
            elif names.count(name) > 1:
                yield f"{key}={name}: {', '.join(self.new_columns)} must be three different names"
