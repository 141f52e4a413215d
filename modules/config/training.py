"""What pretrain and finetune can be told: the optimizer and its length (train), the machine (trainer), the stage."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .base import MODEL, PATH, StageConfig, changed, not_positive, out_of_range, too_large, too_small
from .data import DataConfig, TokenizerConfig
from .evaluation import MEASURES, TaskConfig
from .generation import GenerationConfig
from .model import LoraConfig, SizeConfig

LOSS = "val/loss"

SOURCE_LOSS = re.compile(r"val/([^/]+)/loss")
"""The loss of one source of a mixture."""

VALIDATED = (
    "loss", "perplexity", "perplexity_per_char", "end_of_text_nll", "end_of_text_found", "end_of_text_early",
)  # fmt: skip
"""What each validation measures, whatever checkpoints are chosen by, by the names after val/."""

BY_SOURCE = ("loss", "perplexity", "perplexity_per_char")
"""What of it is said of each source of a mixture, as val/SOURCE/loss."""


@dataclass
class TrainConfig:
    """What is optimized, for how long, and what is watched meanwhile."""

    init_from: str | None = field(default=None, metadata=MODEL)
    """A model folder or a models:/ URI to start from; unset: fresh weights."""
    resume_from: str | None = field(default="auto", metadata=PATH)
    """auto: go on where an interrupted run in output_dir stopped; a checkpoint (…/checkpoints/last.ckpt): go on from
    it in a run and a folder of its own; null: never. All on any number of devices."""
    allow_changed: list[str] = field(default_factory=list)
    """Keys that may differ from those of the run that is gone on with, e.g. [train.max_steps]; data: the rows too. With
    another batch size it goes on from its place in the rows."""
    batch_size: int | None = None
    """Rows an optimizer step; unset, with batch_tokens: the recipe's, with fresh weights the model size's own."""
    batch_tokens: int | None = None
    """Tokens an optimizer step (give this or batch_size)."""
    micro_batch_tokens: int | None = None
    """The most tokens in one forward pass: it bounds memory. A step of more is accumulated exactly. Unset: 2048 on a
    CPU, on a GPU what fits, and in a run that is gone on with what it had."""
    max_epochs: int | None = None
    """Passes over the training rows; unset, with max_steps: the recipe's."""
    max_steps: int | None = None
    """Optimizer steps (with max_epochs: whichever comes first)."""
    learning_rate: float | None = None
    """Peak learning rate (noam: its factor); unset: the recipe's, and with fresh weights the model size's own."""
    optimizer: Literal["adamw", "adafactor", "muon"] = "adamw"
    """adafactor keeps of a matrix's squared gradients a row and a column; muon keeps one momentum of each matrix of the
    layers, and leaves the rest to AdamW, with the same learning rate."""
    schedule: Literal["noam", "cosine", "constant", "wsd"] | None = "cosine"
    """noam: lr·min((s+1)^-0.5, (s+1)·warmup^-1.5); after a linear warm-up cosine, constant, or wsd: constant, and a
    linear decay at the end. Unset: the recipe's."""
    warmup_steps: int | None = 100
    """Steps until the schedule's peak; unset: the recipe's."""
    min_learning_rate_ratio: float = 0.1
    """Where cosine and wsd end, as a share of the peak."""
    decay_fraction: float = 0.2
    """wsd: the share of all steps, at the end, in which the rate decays."""
    weight_decay: float = 0.1
    """Decoupled decay, on matrices only."""
    beta1: float = 0.9
    """AdamW's decay of the gradient's mean."""
    beta2: float = 0.95
    """AdamW's decay of the gradient's square."""
    epsilon: float = 1e-8
    """AdamW's ε."""
    gradient_clip_val: float = 1.0
    """Largest global gradient norm; 0: unclipped."""
    validate_every_n_steps: int | None = None
    """Steps between validations; unset: once an epoch."""
    select_by: str = LOSS
    """What the best checkpoint is chosen by, and early stopping watches: val/loss, or a measure of texts written
    greedily for task.rows validation rows at each validation, by the name that evaluate logs: rougeL, bleu, …; of a
    mixture val/loss, which is all sources' by weight, or one source's val/NAME/loss."""
    early_stopping_patience: int | None = None
    """Validations without a better value of train.select_by before training stops; unset: never."""
    save_every_n_steps: int | None = None
    """Steps between checkpoints; there is one before each validation anyway, at the end, and when a run is stopped."""
    save_top_k: int = 1
    """Checkpoints kept, the best by train.select_by, beside the last one; -1: all."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is NaN or infinite ends the run, or is left out and counted."""
    log_every_n_steps: int = 1
    """Steps between logged metrics."""
    sample_prompts: list[str] | None = None
    """Prompts continued at every validation; they end up in the run's sample table. Unset: what is to be answered in
    three validation rows, or how these begin."""

    @property
    def measure(self) -> str:
        """select_by without what stands before it where it is logged, e.g. rougeL."""
        return self.select_by.removeprefix("val/").removeprefix("test/")

    @property
    def text_metric(self) -> str | None:
        """The metric of generated texts (task.metrics) that select_by is a measure of; None: it is val/loss."""
        return next((metric for metric, measures in MEASURES.items() if self.measure in measures), None)

    def select_complaints(self) -> Iterator[str]:
        if self.select_by == LOSS or self.text_metric or SOURCE_LOSS.fullmatch(self.select_by):
            return
        known = [LOSS, *(name for measures in MEASURES.values() for name in measures)]
        near = MEASURES.get(self.measure) or difflib.get_close_matches(self.measure, known, 1)
        meant = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(known)}"
        yield f"select_by={self.select_by}: nothing of that name can be chosen by; {meant}"

    def complaints(self) -> Iterator[str]:
        yield from self.select_complaints()
        if self.batch_size and self.batch_tokens:
            yield f"batch_size={self.batch_size} and batch_tokens={self.batch_tokens} exclude each other: set one null"
        yield from too_small(self, 1, "batch_size", "batch_tokens", "micro_batch_tokens", "max_epochs", "max_steps")
        yield from too_small(self, 1, "warmup_steps", "log_every_n_steps", "validate_every_n_steps")
        yield from too_small(self, 1, "early_stopping_patience", "save_every_n_steps")
        yield from too_small(self, 0, "weight_decay", "gradient_clip_val")
        yield from too_small(self, -1, "save_top_k")  # Lightning's -1: all
        yield from not_positive(self, "learning_rate", "epsilon")
        yield from out_of_range(self, "beta1", "beta2")
        if not 0 < self.decay_fraction <= 1:
            yield f"decay_fraction ({self.decay_fraction}) must be above 0 and at most 1"
        if not 0 <= self.min_learning_rate_ratio <= 1:
            yield f"min_learning_rate_ratio ({self.min_learning_rate_ratio}) must be from 0 to 1"


@dataclass
class TrainerConfig:
    """The machine: handed to Lightning's Trainer."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to run."""
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true"] = "auto"
    """Number format. bf16-mixed: float32 weights and optimizer, everything between in bfloat16; auto: that where it is
    faster (GPUs, CPUs with AVX-512-BF16 or AMX), else 32-true. bf16-true: weights too, which loses small updates."""
    compile: bool | None = None
    """On a GPU: compile the layers with torch.compile, which takes a minute first; unset: where there is a C compiler.
    Not under trainer.strategy=fsdp."""
    deterministic: bool = True
    """On a GPU: kernels that add up in a fixed order, so that a resumed run ends as if it had never stopped; costs
    speed. Not shown yet for compiled layers."""
    devices: int = 1
    """GPUs (or CPU processes) on each machine."""
    nodes: int = 1
    """Machines; each runs the same command under torchrun or SLURM."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Several devices: ddp keeps the whole model on each, fsdp spreads weights, gradients and optimizer over them."""
    tensor_parallel: int = 1
    """Devices that share each matrix, where even one layer is too large (needs fsdp); the rest share the rows."""
    process_group_timeout: int | None = None
    """Seconds until a rank that has died or hangs ends the job; unset: 60, and 600 on GPUs, where ranks compile."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass instead of kept: cheap ones (selective), or whole layers."""
    device_memory: float | None = None
    """GiB a device may fill, which the plan is held against; unset: what this machine has."""
    progress_bar: bool = True
    """Show one."""

    @property
    def data_parallel(self) -> int:
        """Groups of devices that each take a share of a step's rows."""
        return self.devices * self.nodes // self.tensor_parallel

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 1, "devices", "nodes", "tensor_parallel", "process_group_timeout")
        yield from too_large(self, 1_000, "devices")
        yield from not_positive(self, "device_memory")
        parts = self.tensor_parallel
        if parts > 0 and self.devices * self.nodes % parts:
            yield f"tensor_parallel ({parts}) must divide devices × nodes ({self.devices} × {self.nodes})"
        if parts > 1 and self.strategy != "fsdp":
            yield f"tensor_parallel={parts} needs strategy=fsdp"


@dataclass
class TrainingConfig(StageConfig):
    """pretrain and finetune."""

    output_dir: str | None = field(default=None, metadata=PATH)
    """Folder for what the stage makes, empty or new; unset: outputs/STAGE-RUN_ID."""
    model: SizeConfig | None = None
    """A size by name (model=base); with train.init_from the folder says it, and this must stay unset."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    recipe: Literal["poetry", "own"] | None = None
    """What sequence length, learning rate, schedule, warm-up, batch and epochs are where they are unset. poetry: the
    original model card's (conf/recipe/poetry.yaml); own: worked out from the rows and the model's size. Unset: poetry
    for the sets of verse that prepare makes, own for all other rows."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What the model is for: task=NAME says which data set and how much text it takes, where the command doesn't, and
    how train.select_by scores it."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """Of train.sample_prompts; and of what train.select_by scores, but that this is written greedily."""
    filled = tuple[str, ...]()
    """No key: the names of those that the recipe has set, as they weren't given."""

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        start, rank = self.train.init_from, self.lora.rank
        if start and self.model:
            yield (
                f"model and train.init_from ({start}) exclude each other: the folder says its size; "
                "drop one (train.init_from=null trains from fresh weights, model=null starts from the folder)"
            )
        for name in changed(self.tokenizer, TokenizerConfig()) if start else ():
            yield f"tokenizer.{name} has no effect with train.init_from={start}, which brings its tokenizer; drop it"
        if not start and not self.model:
            yield "train.init_from (a model folder or models:/ URI) or model (a size, for fresh weights) must be given"
        if rank and not start:
            yield f"lora.rank={rank}: adapters need a model to adapt; give train.init_from, or lora.rank=0"
        if rank and self.trainer.tensor_parallel > 1:
            yield (
                f"lora.rank={rank} and trainer.tensor_parallel={self.trainer.tensor_parallel} exclude each "
                "other: adapters aren't cut; trainer.strategy=fsdp alone spreads the frozen weights"
            )
        if not self.task.name and not self.train.text_metric:
            for name in changed(self.task, TaskConfig()):
                yield f"task.{name} has no effect with train.select_by={LOSS}; drop it, or give train.select_by=rougeL"
        yield from self.mix_complaints()
        if self.train.optimizer == "adafactor":
            yield from self.adafactor_complaints()
        if not self.model:
            return
        parts, heads = self.trainer.tensor_parallel, self.model.num_attention_heads
        if parts > 1 and heads % parts:
            yield f"trainer.tensor_parallel ({parts}) must divide model.num_attention_heads ({heads})"
        length, limit = self.data.sequence_length, self.model.max_position_embeddings
        if limit and length and length > limit:
            yield f"data.sequence_length ({length}) is over model.max_position_embeddings ({limit})"

    def mix_complaints(self) -> Iterator[str]:
        """What is chosen by, and what the sources of a mixture are called, must go together."""
        names, chosen = [source.label for source in self.data.mix], SOURCE_LOSS.fullmatch(self.train.select_by)
        losses = ", ".join(f"val/{name}/loss" for name in names)
        if chosen and chosen[1] not in names:
            known = f"data.mix has {losses}" if names else "it is of a source of data.mix, which isn't given"
            yield f"train.select_by={self.train.select_by}: there is no such source; {known}"
        if names and self.train.text_metric:
            yield (
                f"train.select_by={self.train.select_by} and data.mix exclude each other: texts can be scored for one "
                f"task alone; give {LOSS} (all sources, by weight), or one of {losses}"
            )
        for name in (name for name in names if name in VALIDATED):
            yield f"data.mix: a source can't be called {name}, as a metric is: give it another name: NAME"

    def adafactor_complaints(self) -> Iterator[str]:
        """Adafactor's steps are a share of each parameter's own size, and torch's takes no parameters that are cut."""
        if self.trainer.strategy == "fsdp" and self.trainer.devices * self.trainer.nodes > 1:
            yield (
                "train.optimizer=adafactor and trainer.strategy=fsdp exclude each other: torch's Adafactor can't work "
                "on weights that are spread; give trainer.strategy=ddp, or train.optimizer=adamw or muon"
            )
        if self.lora.rank:
            yield (
                f"train.optimizer=adafactor and lora.rank={self.lora.rank} exclude each other: its steps are a share "
                "of each weight, and adapters begin at zero; give train.optimizer=adamw or muon"
            )
        if self.train.learning_rate is None:
            yield (
                "train.learning_rate must be given with train.optimizer=adafactor: it is a share of each weight's "
                "size (torch's own default is 1e-2), and the model size's rate is AdamW's"
            )
