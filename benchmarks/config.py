"""What `benchmark` measures: a section for each kind of work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from modules.config.base import StageConfig, too_small
from modules.config.commands import STAGES
from modules.config.model import SizeConfig

PARTS = ("training", "memory", "overhead", "generation", "startup", "data", "scaling", "mfu")


def bad_list(section: object, minimum: int, *names: str) -> Iterator[str]:
    """A complaint for each list of numbers that is empty or holds one below the minimum."""
    for name in names:
        values: list[Any] = getattr(section, name)
        if not values or min(values) < minimum:
            yield f"{name} ({values}) must be a list of numbers of at least {minimum}"


@dataclass
class TrainingBenchmark:
    """Fine-tuning of fresh weights, the same rows for everybody."""

    sequence_lengths: list[int] = field(default_factory=lambda: [128, 512])
    """The most tokens of a document, and the length that peers pad or pack to: a table each."""
    batch_tokens: int = 1024
    """Tokens an optimizer step, without padding."""
    steps: int = 3
    """Optimizer steps that count."""
    warmup_steps: int = 1
    """Steps before them, which don't."""
    memory_tokens: int = 4096
    """Tokens of the one step that peak memory is taken from (what=[memory]), at the longest of sequence_lengths."""
    overhead_steps: int = 400
    """Steps of a nearly empty model, to see what Lightning, loader and logging cost (what=[overhead])."""
    arguments: list[str] = field(default_factory=list)
    """Further key=value of pipelines.finetune for moyun's rows, e.g. [trainer.precision=bf16-mixed]."""

    def complaints(self) -> Iterator[str]:
        yield from bad_list(self, 2, "sequence_lengths")
        yield from too_small(self, 1, "batch_tokens", "steps", "warmup_steps", "memory_tokens", "overhead_steps")
        if self.sequence_lengths and min(self.batch_tokens, self.memory_tokens) < max(self.sequence_lengths):
            yield (
                f"batch_tokens ({self.batch_tokens}) and memory_tokens ({self.memory_tokens}) must hold at least "
                f"one document of sequence_lengths ({self.sequence_lengths})"
            )


@dataclass
class GenerationBenchmark:
    """Greedy text from random weights."""

    rows: list[int] = field(default_factory=lambda: [1, 16])
    """Prompts at once: a table each."""
    prompt_tokens: int = 64
    """Of each prompt."""
    new_tokens: int = 64
    """Of each answer; nobody stops before."""

    def complaints(self) -> Iterator[str]:
        yield from bad_list(self, 1, "rows")
        yield from too_small(self, 2, "prompt_tokens", "new_tokens")


@dataclass
class ScalingBenchmark:
    """How cost grows, as curves of at least three points; fresh weights, forward, backward and optimizer."""

    sequence_lengths: list[int] = field(default_factory=lambda: [64, 128, 256, 512, 1024])
    """Tokens of one document."""
    batches: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    """Documents of 32 tokens."""
    sizes: list[str] = field(default_factory=lambda: ["tiny", "base", "large"])
    """Models by name, on 256 tokens."""
    rows: list[int] = field(default_factory=lambda: [10_000, 20_000, 40_000, 80_000, 160_000, 320_000])
    """Rows of text, from file through tokenizer and plan to one epoch's batches."""
    steps: int = 2
    """Of each point, after one that doesn't count; the fastest counts."""

    def complaints(self) -> Iterator[str]:
        yield from bad_list(self, 1, "sequence_lengths", "batches", "rows")
        yield from too_small(self, 1, "steps")
        for name in ("sequence_lengths", "batches", "sizes", "rows"):
            if len(set(getattr(self, name))) < 3:
                yield f"{name} ({getattr(self, name)}) must hold at least three points: a curve takes as many"


@dataclass
class BenchmarkConfig(StageConfig):
    """moyun beside other tools, on this machine: speed, memory, start-up, and how cost grows."""

    program: ClassVar[str] = "benchmarks"

    model: SizeConfig = field(default_factory=SizeConfig)
    """A size by name."""
    what: list[str] = field(default_factory=lambda: [part for part in PARTS if part != "mfu"])
    """Parts to measure: training, memory, overhead, generation, startup, data, scaling, mfu (needs a GPU)."""
    rounds: int = 2
    """Everybody's turns, one after the other (A B C A B C …), for medians and spreads; memory and scaling take one."""
    threads: int | None = None
    """Of each process; unset: the CPUs that this process may use."""
    table: str | None = None
    """A Markdown file whose tables are to be replaced (docs/performance.md); unset: they are printed and logged."""
    training: TrainingBenchmark = field(default_factory=TrainingBenchmark)
    generation: GenerationBenchmark = field(default_factory=GenerationBenchmark)
    scaling: ScalingBenchmark = field(default_factory=ScalingBenchmark)

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        yield from too_small(self, 1, "rounds", "threads")
        for part in self.what:
            if part not in PARTS:
                yield f"what holds {part}, which isn't one of {', '.join(PARTS)}"
        longest = max(self.training.sequence_lengths, default=0)
        longest = max(longest, self.generation.prompt_tokens + self.generation.new_tokens)
        longest = max([longest, *self.scaling.sequence_lengths])
        if longest > self.model.max_position_embeddings:
            yield (
                f"model.max_position_embeddings ({self.model.max_position_embeddings}) is below the longest text to "
                f"be measured ({longest} tokens: training.sequence_lengths, scaling.sequence_lengths or "
                "generation.prompt_tokens + new_tokens)"
            )


STAGES["benchmark"] = BenchmarkConfig
