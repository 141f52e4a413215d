"""How a task is scored, and what evaluate and register can be told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .base import LARGEST, LINES, MISSING, MODEL, StageConfig, too_small
from .data import AskedTaskConfig, DataConfig
from .generation import GenerationConfig


@dataclass
class TaskConfig(AskedTaskConfig):
    """What rows are scored by, and how a model is asked (docs/tasks.md)."""

    metrics: list[str] = field(default_factory=lambda: ["perplexity"])
    """Of likelihood: perplexity, choices; of generated texts: rouge, bleu, chrf, slots, exact_match, repetition,
    length, verse, couplet."""
    trivial: list[str] = field(default_factory=list)
    """What stands beside the model: reference (the rows' own targets: what people score), lead (the source's first
    sentence), copy (the source), most_frequent (training target), nearest (the target of the training row whose source
    shares the most characters)."""
    examples: int = 0
    """Solved training rows before each question (few-shot), drawn by seed for each row."""
    separator: str = field(default="\n\n", metadata=LINES)
    """Between them; it also ends an answer, where there are examples."""
    rows: int | None = None
    """Texts are generated for so many test rows, drawn by seed; unset: for all. Likelihood is always of all. In
    training (train.select_by) so many validation rows; unset: 50."""
    tokenize: Literal["zh", "char", "13a", "none"] = "zh"
    """sacrebleu's tokenizer for BLEU. zh: Chinese by characters, the rest by words; char: all by characters."""

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        yield from too_small(self, 0, "examples")
        yield from too_small(self, 1, "rows")
        for given, known in (("metrics", (*LIKELIHOOD_METRICS, *TEXT_METRICS)), ("trivial", TRIVIAL)):
            for name in getattr(self, given):
                if name not in known:
                    yield f"{given} holds {name}, which isn't one of {', '.join(known)}"
        if not self.metrics:
            yield "metrics must name at least one"
        if self.examples and not self.separator:
            yield "separator must not be empty: nothing would part the examples"


@dataclass
class ScoringConfig(StageConfig):
    """What evaluate and register share: how a model is scored on a task's test rows."""

    task: TaskConfig = field(default_factory=TaskConfig)
    """task=NAME reads conf/task/NAME.yaml, which also says how much text the task takes, where the command doesn't."""
    data: DataConfig = field(default_factory=DataConfig)
    """Unset: the rows that the model's own training names (its run.yaml), else those of the task."""
    ngram_floor: bool = True
    """Fit uni-, bi- and trigrams on the training rows and score them too, where perplexity is the measure."""
    max_batch_tokens: int = 8192
    """The most tokens in one forward pass."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        yield from too_small(self, 1, "max_batch_tokens")
        if self.data.mix:
            yield "data.mix: one set is scored at a time; give data.path, and the others in commands of their own"


@dataclass
class EvaluateConfig(ScoringConfig):
    """A model on a task's test rows, beside what it started from and what needs no model."""

    model: str = field(default="models:/moyun@champion", metadata=MODEL)
    """A model folder or a models:/ URI."""
    baseline: str | None = field(default=None, metadata=MODEL)
    """Another model to stand beside it, e.g. the one it was fine-tuned from."""
    champion: str | None = field(default=None, metadata=MODEL)
    """A third one, e.g. models:/moyun@champion: the report tests the model against it and the baseline, row by row."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format to compute in; auto: the one that the model is stored in (float16 only on a GPU).

    int8: 8-bit weights and products, on a CPU only; the fastest, and a quarter of float32's memory."""
    prompts: list[str] = field(default_factory=list)
    """What to continue for the sample table; unset: the first three test rows, each of another group."""
    card: bool = False
    """Make the model's card, README.md: an artifact of the run, and a file in the model folder where that is yours."""


@dataclass
class RegisterConfig(ScoringConfig):
    """A model folder → a version in the registry, and `champion` if it earns it."""

    model: str = field(default=MISSING, metadata=MODEL)
    """The model folder to register."""
    model_name: str = "moyun"
    """Name in the registry."""
    alias: str = "champion"
    """Moves to the new version where its measure is better than the holder's, by a paired test on the same rows."""
    measure: str | None = None
    """What decides: a score of evaluate's, e.g. rougeL; unset: the first of the task's that compares with the rows'
    answers, else perplexity_per_char."""
    guard: dict[str, float] = field(default_factory=dict)
    """Score → by what share of the holder's it may be worse at most, e.g. {perplexity_per_char: 0.02}; else the alias
    stays, however much better the measure is."""
    level: float = 0.05
    """Of that test: the largest p at which a difference counts; undecided means not promoted."""

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        if not 0 < self.level < 1:
            yield f"level ({self.level}) must be between 0 and 1; 0.05 is usual"
        for name, share in self.guard.items():
            if not 0 <= share < LARGEST:
                yield f"guard.{name} ({share}) must be a share, at least 0: 0.02 is 2 %"


LIKELIHOOD_METRICS = ("perplexity", "choices")

TEXT_METRICS = ("rouge", "bleu", "chrf", "slots", "exact_match", "repetition", "length", "verse", "couplet")
"""Those of texts that are generated."""

MEASURES = {
    "rouge": ("rougeL", "rouge1", "rouge2"),
    "bleu": ("bleu",),
    "chrf": ("chrf",),
    "slots": ("slot_error_rate",),
    "exact_match": ("exact_match",),
    "repetition": ("repetition", "distinct_2"),
    "verse": (
        "lines_of_one_length", "quatrain_or_regulated", "rhyme", "tones_alternate", "tones_oppose_in_couplets",
        "tones_agree_between_couplets", "repeated_characters", "repeated_pairs", "repeated_lines",
    ),
    "couplet": ("same_length", "tones_oppose", "last_tones", "characters_of_the_first_line_again"),
}  # fmt: skip
"""Metric of generated texts → what it measures, by the names that evaluate logs under test/. Of a length ratio neither
more nor less is better, so nothing can be chosen by it."""

MAIN_MEASURE = {
    "rouge": "rougeL",
    "bleu": "bleu",
    "chrf": "chrf",
    "slots": "slot_error_rate",
    "exact_match": "exact_match",
    "choices": "choice_accuracy",
}
"""Metric that compares with the rows' answers → the measure of it that a model is judged by; all other metrics say what
form texts have."""

NGRAMS = ("unigram", "bigram", "trigram")

TRIVIAL = ("reference", "lead", "copy", "most_frequent", "nearest")
