"""What a training run will do, worked out before it does anything: sizes, steps, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...config.model import ModelConfig, SizeConfig
from ...config.training import LOSS, TrainConfig, TrainingConfig
from ...data.datamodule import TextDataModule
from ...data.packing import Position
from ...model.decoder import parameter_count
from ...model.lora import lora_parameter_count
from ..precision import describe_precision
from .memory_limit import CPU_TOKENS, MemoryDemand, fitting_tokens, memory_in_words
from .recipe import Recipe
from .source_facts import SourceFacts, facts_of_sources
from .split_facts import SplitFacts


@dataclass(frozen=True)
class TrainingPlan:
    parameters: int
    rows: int
    rows_cut: int
    rows_split: int
    tokens_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    epochs: float
    """Passes over the rows that these are."""
    learning_rate: float
    """train.learning_rate, or the model size's own, which the schedule multiplies."""
    warmup_steps: int
    demand: MemoryDemand
    """What the memory of a step depends on."""
    why_so_many: str = "train.micro_batch_tokens"
    """Where the demand's micro_batch_tokens come from."""
    tokens_read: int = 0
    """An epoch, prompts and all; tokens_per_epoch counts those that are trained on."""
    tokens_cut: int = 0
    ends: int = 0
    """Documents that keep their end-of-text."""
    splits: Mapping[str, SplitFacts] = field(default_factory=dict)
    sources: Sequence[SourceFacts] = ()
    """Of a mixture."""
    read_an_epoch: int = 0
    """Tokens in an epoch's steps: of a mixture others than each row's once (tokens_read)."""
    schedule: str = "cosine"
    chosen_by: str = LOSS
    """What the best checkpoint is chosen by, in words."""
    objective: str = ""
    """What is learnt from pairs, in words; "" where texts are learnt."""
    sequence_length: int = 0
    recipe: Recipe = field(default_factory=lambda: Recipe("own"))

    def describe(self) -> dict[str, str]:
        """Label → text, for printing."""
        memory, trained, warmup = self.demand.memory(), self.demand.adapter_parameters, self.warmup_steps
        adapters = "" if trained is None else f", frozen; {trained:,} in adapters are trained"
        unreached = f", not reached: the run ends in its {warmup:,} steps of warm-up (train.warmup_steps)"
        return {
            "parameters": f"{self.parameters:,}{adapters}",
            "recipe": str(self.recipe),
            "rows": f"{self.rows:,} (over-long: {self.over_long()})",
            **self.describe_texts(),
            "tokens a row": f"at most {self.sequence_length:,}{self.why_so_long()}",
            "tokens an epoch": f"{self.read_an_epoch:,} read, {self.tokens_per_epoch:,} trained on",
            "tokens a step": f"{self.read_an_epoch / self.steps_per_epoch:,.0f}",
            "tokens a pass": f"at most {self.demand.micro_batch_tokens:,} ({self.why_so_many})",
            "steps": f"{self.total_steps:,} ({self.epochs:.2f} epochs)",
            **({"loss": self.objective} if self.objective else {}),
            "best checkpoint": f"by {self.chosen_by}",
            "learning rate": f"{self.peak()}{unreached * (warmup > self.total_steps)}{self.recipe.why_this_rate()}",
            "number format": describe_precision(self.demand.trainer),
            "memory a device": f"{memory_in_words(memory.peak)} at a step's peak, where not all of these meet:",
            "  weights": memory_in_words(memory.weights),
            "  gradients": memory_in_words(memory.gradients),
            "  optimizer": f"{memory_in_words(memory.optimizer)} ({self.demand.optimizer})",
            "  activations": memory_in_words(memory.activations),
            "  temporary": memory_in_words(memory.temporary),
        }

    def describe_texts(self) -> dict[str, str]:
        """Where rows come from, and what of them can't be learnt."""
        lines = {f"  {source.name}": source.describe(self) for source in self.sources}
        for name, facts in self.splits.items():
            if name == "train":
                lines["  kind"] = facts.kind
            if not name.startswith("train/"):  # of which the sources' own lines tell
                lines["  from" if name == "train" else f"{name} rows"] = str(facts.place if name == "train" else facts)
            if facts.lost and facts.lost.counts:
                lines["  lost" if name == "train" else f"  lost in {name}"] = (
                    f"{facts.lost}: the tokenizer doesn't give them back"
                )
        if self.tokens_cut:
            whole = self.tokens_cut + self.tokens_read + self.rows
            lines["  cut off"] = (
                f"{self.tokens_cut:,} of {whole:,} tokens ({self.tokens_cut / whole:.1%}){self.remedy()}"
            )
        if not self.ends:
            lines["  no ends"] = (
                "no row keeps its end, so the model won't learn to stop: give a longer data.sequence_length, or for "
                "plain text data.over_long=split"
            )
        return lines

    def over_long(self) -> str:
        """How many rows have more tokens than a document may, and what becomes of them."""
        if not self.rows_split + self.rows_cut:
            return "none"
        pairs = "train" in self.splits and self.splits["train"].kind == "pairs"
        answers = f" at the end of the source, {self.rows - self.ends:,} of them of the answer too"
        return f"{self.rows_split:,} split, {self.rows_cut:,} cut{answers if self.rows_cut and pairs else ''}"

    def why_so_long(self) -> str:
        """Why no document has more tokens, where the recipe has said so."""
        if not self.recipe.longest or "data.sequence_length" not in self.recipe.filled:
            return " (data.sequence_length)" if self.recipe.name == "own" else ""
        window = self.demand.model.max_position_embeddings
        why = "the model's window" if self.sequence_length == window else "as 95% of the rows have"
        return f" ({why}; the longest has {self.recipe.longest:,})"

    def remedy(self) -> str:
        """What to do about rows that are cut."""
        window = self.demand.model.max_position_embeddings
        if self.sequence_length >= window:
            return f"; the model's window is {window:,} tokens"
        return f"; data.sequence_length={window}, the model's window, cuts least"

    def peak(self) -> str:
        """The highest rate that there will be: noam multiplies train.learning_rate with warmup^-0.5 at its peak."""
        if self.schedule != "noam":
            return f"{self.learning_rate:g}"
        return f"{self.learning_rate * self.warmup_steps**-0.5:g} at most (noam: {self.learning_rate:g} · warmup^-0.5)"


def make_plan(
    config: TrainingConfig, model: ModelConfig, data: TextDataModule, earlier_tokens: int | None = None
) -> TrainingPlan:
    """earlier_tokens: micro_batch_tokens of the run that is gone on with: with the same, sums have the same order."""
    documents = data.documents["train"]
    lengths, batch = np.sort(documents.lengths)[::-1], (data.batch_size, data.batch_tokens)
    adapters = lora_parameter_count(model, config.lora) if config.lora.rank else None
    demand = MemoryDemand(model, config.trainer, lengths, *batch, CPU_TOKENS, adapters, config.train.optimizer)
    tokens, why = config.train.micro_batch_tokens, "train.micro_batch_tokens"
    if tokens is None and earlier_tokens:
        tokens, why = earlier_tokens, "as in the run that is gone on with"
    elif tokens is None:
        tokens, why = fitting_tokens(demand)
    steps, epochs = length_of(config.train, data)
    return TrainingPlan(
        parameters=parameter_count(model),
        rows=documents.rows,
        rows_cut=documents.rows_cut,
        rows_split=documents.rows_split,
        tokens_per_epoch=data.trained_an_epoch,
        steps_per_epoch=data.steps_per_epoch,
        total_steps=steps,
        epochs=epochs,
        learning_rate=peak_learning_rate(config),
        warmup_steps=config.train.warmup_steps or 1,
        demand=replace(demand, micro_batch_tokens=tokens),
        why_so_many=why,
        tokens_read=int(documents.lengths.sum()),
        read_an_epoch=data.read_an_epoch,
        sources=facts_of_sources(data),
        tokens_cut=documents.tokens_cut,
        ends=int(documents.ended.sum()),
        schedule=config.train.schedule or "cosine",
        sequence_length=config.data.sequence_length or 0,
    )


def length_of(train: TrainConfig, data: TextDataModule) -> tuple[int, float]:
    """All steps, and the passes over the rows that they come to."""
    in_epochs = data.steps_until(train.max_epochs) if train.max_epochs else math.inf
    steps = int(min(train.max_steps or math.inf, in_epochs))
    return steps, data.epochs_after(steps)


def plan_from(
    train: TrainConfig, plan: TrainingPlan, data: TextDataModule, progress: dict[str, Any] | None
) -> TrainingPlan:
    """The plan of a run that goes on from a checkpoint, with what it says of its rows; older ones say nothing."""
    if progress:
        data.go_on(progress)
    steps, epochs = length_of(train, data)
    return replace(plan, total_steps=steps, epochs=epochs)


@dataclass(frozen=True)
class Course:
    """Which steps a run takes, and after which of them it validates."""

    start: Position
    total_steps: int
    validate_every: int
    offset: int = 0
    """Added to a step: epochs whose steps began to count in their middle don't end at multiples."""
    validates_first: bool = False
    """Whether there is a validation before the first step: of a mixture, to tell what is forgotten."""

    def validates_after(self, step: int) -> bool:
        return (step + self.offset) % self.validate_every == 0


def make_course(train: TrainConfig, plan: TrainingPlan, data: TextDataModule) -> Course:
    """Validates every train.validate_every_n_steps, else at the end of each epoch."""
    every = train.validate_every_n_steps or plan.steps_per_epoch
    first = data.mixture is not None and train.init_from is not None
    if data.start.documents == 0 == data.start.step:
        return Course(data.start, plan.total_steps, min(every, plan.total_steps), validates_first=first)
    offset = 0 if train.validate_every_n_steps else -data.first_epoch_end % every
    return Course(data.start, plan.total_steps, every, offset, first)


def peak_learning_rate(config: TrainingConfig) -> float:
    """train.learning_rate, else the model size's own."""
    rate = config.train.learning_rate
    if rate is None and config.model:
        rate = config.model.learning_rate
    assert rate is not None, "TrainingConfig.complaints sees to it"
    return rate


def batch_of(train: TrainConfig, size: SizeConfig | None) -> dict[str, int | None]:
    """{"batch_size": …, "batch_tokens": …}, one of them set: what train says, else the model size's own."""
    if train.batch_size or train.batch_tokens:
        return {"batch_size": train.batch_size, "batch_tokens": train.batch_tokens}
    assert size, "TrainingConfig.complaints sees to it"
    return {"batch_size": None, "batch_tokens": size.batch_tokens}
