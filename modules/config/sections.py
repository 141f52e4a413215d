"""The sections that stages are made of: typed to the leaf, a docstring under every field (`--help` prints it).

Rules between fields stand in each section's `complaints`, one message each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

MISSING: Any = "???"  # OmegaConf's mark of a value that must be given


def too_small(section: object, minimum: int, *names: str) -> Iterator[str]:
    """A complaint for each field that is set below its minimum; NaN is refused too."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not value >= minimum:
            yield f"{name} ({value}) must be at least {minimum}"


def too_large(section: object, maximum: int, *names: str) -> Iterator[str]:
    """A complaint for each field that is set above what anything could be computed with."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not value <= maximum:
            yield f"{name} ({value}) must be at most {maximum:,}"


def out_of_range(section: object, *names: str) -> Iterator[str]:
    """A complaint for each share or decay rate outside [0, 1)."""
    for name in names:
        value = getattr(section, name)
        if not 0 <= value < 1:
            yield f"{name} ({value}) must be at least 0 and below 1"


def not_positive(section: object, *names: str) -> Iterator[str]:
    for name in names:
        value = getattr(section, name)
        if value is not None and not 0 < value < float("inf"):
            yield f"{name} ({value}) must be a positive number"


@dataclass
class ModelConfig:
    """The architecture, in Hugging Face's names. Defaults are what the family's sizes share."""

    vocab_size: int | None = None
    """Ids of the embedding and the head; unset: the tokenizer's size."""
    hidden_size: int = MISSING
    """Width of a layer (d_model)."""
    num_hidden_layers: int = MISSING
    """Decoder blocks."""
    num_attention_heads: int = MISSING
    """Heads; must divide hidden_size."""
    max_position_embeddings: int = 2048
    """Learned positions: the longest text in tokens."""
    hidden_act: Literal["gelu", "gelu_new"] = "gelu"
    """gelu: exact (erf); gelu_new: its tanh approximation."""
    layer_norm_eps: float = 1e-5
    """Added to the variance in LayerNorm."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    hidden_dropout_prob: float = 0.0
    """Dropout on embeddings and on each residual branch, in training."""
    attention_probs_dropout_prob: float = 0.0
    """Dropout on attention weights, in training; above 0 it costs the fused kernel."""

    def complaints(self) -> Iterator[str]:
        counts = "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "vocab_size"
        yield from too_small(self, 1, *counts)
        yield from too_large(self, 1_000, "num_hidden_layers")
        yield from too_large(self, 1_000_000, "hidden_size")
        yield from too_large(self, 1_000_000_000, "max_position_embeddings", "vocab_size")
        yield from not_positive(self, "layer_norm_eps", "initializer_range")
        yield from out_of_range(self, "hidden_dropout_prob", "attention_probs_dropout_prob")
        if self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads:
            yield (
                f"hidden_size ({self.hidden_size}) must be divisible by "
                f"num_attention_heads ({self.num_attention_heads})"
            )


@dataclass
class SizeConfig(ModelConfig):
    """A row of the table in ModelScope's model cards: architecture, and what to pretrain it with (docs/recipes.md)."""

    learning_rate: float = MISSING
    """Peak learning rate, used where train.learning_rate is unset."""
    batch_tokens: int = MISSING
    """Tokens an optimizer step, used where neither train.batch_tokens nor train.batch_size is set."""

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        yield from not_positive(self, "learning_rate")
        yield from too_small(self, 1, "batch_tokens")


@dataclass
class DataConfig:
    """Where rows come from and how they become training rows."""

    path: str | None = None
    """A file (csv, tsv, json, jsonl, parquet, txt; .gz too), a folder of train/validation/test files, or a hub name."""
    columns: dict[str, str] = field(default_factory=dict)
    """The user's column names → src_txt or tgt_txt, e.g. data.columns.text1=src_txt."""
    validation_path: str | None = None
    """Rows for validation; unset: the folder's validation file, else validation_fraction of the training rows."""
    test_path: str | None = None
    """Rows for evaluation; unset: the folder's test file."""
    validation_fraction: float = 0.02
    """Share of training rows held out when there are no validation rows of their own."""
    max_rows: int | None = None
    """Only the first so many rows of each split."""
    bad_rows: Literal["refuse", "quarantine"] = "refuse"
    """Rows that can't be used as they are: refuse all, or leave these out and list them in quarantine.jsonl."""
    max_bad_rows: float = 0.01
    """With bad_rows=quarantine: the largest share of each split that may be left out."""
    sequence_length: int = 512
    """The most tokens of one training document."""
    over_long: Literal["split", "cut"] = "cut"
    """Rows longer than sequence_length: split into several documents, or cut (and counted)."""
    prompt_template: str | None = None
    """How src_txt becomes a prompt when there is a tgt_txt, e.g. "{src_txt}\\n"; it travels with the tokenizer."""
    cache_dir: str | None = None
    """Where rows and token ids are kept for the next run; unset: moyun in $XDG_CACHE_HOME or ~/.cache."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 1, "sequence_length", "max_rows")
        yield from out_of_range(self, "validation_fraction", "max_bad_rows")
        if self.prompt_template is not None and self.prompt_template.count("{src_txt}") != 1:
            yield f'prompt_template ({self.prompt_template!r}) must hold "{{src_txt}}" exactly once'


@dataclass
class TokenizerConfig:
    """The tokenizer of a model that is trained from scratch."""

    path: str | None = None
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


@dataclass
class TrainConfig:
    """What is optimized, for how long, and what is watched meanwhile."""

    init_from: str | None = None
    """A model folder or a models:/ URI to start from; unset: fresh weights."""
    resume_from: str | None = "auto"
    """auto: go on where an interrupted run in output_dir stopped; a checkpoint (…/checkpoints/last.ckpt): go on from
    it in a run and a folder of its own; null: never. All on any number of devices."""
    allow_changed: list[str] = field(default_factory=list)
    """Keys that may differ from those of the run that is gone on with, e.g. [train.max_steps]; data: the rows too."""
    batch_size: int | None = None
    """Rows an optimizer step."""
    batch_tokens: int | None = None
    """Tokens an optimizer step (give this or batch_size)."""
    micro_batch_tokens: int = 2048
    """The most tokens in one forward pass: it bounds memory. A step of more is accumulated exactly; GPUs want more."""
    max_epochs: int | None = None
    """Passes over the training rows."""
    max_steps: int | None = None
    """Optimizer steps (with max_epochs: whichever comes first)."""
    learning_rate: float | None = None
    """Peak learning rate (noam: its factor); unset: the model size's own."""
    schedule: Literal["noam", "cosine", "constant"] = "cosine"
    """noam: lr·min((s+1)^-0.5, (s+1)·warmup^-1.5); cosine and constant after a linear warm-up."""
    warmup_steps: int = 100
    """Steps until the schedule's peak."""
    min_learning_rate_ratio: float = 0.1
    """Where cosine ends, as a share of the peak."""
    weight_decay: float = 0.1
    """AdamW's decay, on matrices only."""
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
    early_stopping_patience: int | None = None
    """Validations without a better val/loss before training stops; unset: never."""
    save_every_n_steps: int | None = None
    """Steps between checkpoints; there is one before each validation anyway, at the end, and when a run is stopped."""
    save_top_k: int = 1
    """Checkpoints kept by val/loss, beside the last one; -1: all."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is NaN or infinite ends the run, or is left out and counted."""
    log_every_n_steps: int = 1
    """Steps between logged metrics."""
    sample_prompts: list[str] = field(default_factory=list)
    """Prompts continued at every validation; they end up in the run's sample table."""

    def complaints(self) -> Iterator[str]:
        if self.batch_size and self.batch_tokens:
            yield f"batch_size={self.batch_size} and batch_tokens={self.batch_tokens} exclude each other: set one null"
        if self.max_epochs is None and self.max_steps is None:
            yield "max_epochs or max_steps must be given: when should training end?"
        yield from too_small(self, 1, "batch_size", "batch_tokens", "micro_batch_tokens", "max_epochs", "max_steps")
        yield from too_small(self, 1, "warmup_steps", "log_every_n_steps", "validate_every_n_steps")
        yield from too_small(self, 1, "early_stopping_patience", "save_every_n_steps")
        yield from too_small(self, 0, "weight_decay", "gradient_clip_val")
        yield from too_small(self, -1, "save_top_k")  # Lightning's -1: all
        yield from not_positive(self, "learning_rate", "epsilon")
        yield from out_of_range(self, "beta1", "beta2")
        if not 0 <= self.min_learning_rate_ratio <= 1:
            yield f"min_learning_rate_ratio ({self.min_learning_rate_ratio}) must be from 0 to 1"


@dataclass
class TrainerConfig:
    """The machine: handed to Lightning's Trainer."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to run."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    """Number format; bf16 pays on GPUs and on CPUs with AVX-512-bf16 or AMX."""
    devices: int = 1
    """GPUs (or CPU processes) on each machine."""
    nodes: int = 1
    """Machines; each runs the same command under torchrun or SLURM."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Several devices: ddp keeps the whole model on each, fsdp spreads weights, gradients and optimizer over them."""
    tensor_parallel: int = 1
    """Devices that share each matrix, where even one layer is too large (needs fsdp); the rest share the rows."""
    process_group_timeout: int = 60
    """Seconds until a rank that has died or hangs ends the job."""
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
        yield from not_positive(self, "device_memory")
        world = self.devices * self.nodes
        if self.tensor_parallel > 0 and world % self.tensor_parallel:
            yield (
                f"tensor_parallel ({self.tensor_parallel}) must divide devices × nodes ({self.devices} × {self.nodes})"
            )
        if self.tensor_parallel > 1 and self.strategy != "fsdp":
            yield f"tensor_parallel={self.tensor_parallel} needs strategy=fsdp"


@dataclass
class GenerationConfig:
    """How text is sampled."""

    max_new_tokens: int = 128
    """The most tokens to generate."""
    temperature: float = 1.0
    """Divides the logits; 0: greedy, the most likely token each time."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities reach p (nucleus)."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that already stand in the text less likely (CTRL's formula)."""
    seed: int | None = None
    """Makes sampling repeatable: the same prompt, parameters and seed give the same text."""
    stop: list[str] = field(default_factory=list)
    """Texts that end the generation; they are not part of the result."""

    def complaints(self) -> Iterator[str]:
        if self.max_new_tokens < 1:
            yield f"max_new_tokens ({self.max_new_tokens}) must be at least 1"
        if self.temperature != 0 and not 0.001 <= self.temperature <= 1000:  # also refuses NaN
            yield f"temperature ({self.temperature}) must be 0 (greedy) or from 0.001 to 1000"
        if self.top_k < 0:
            yield f"top_k ({self.top_k}) must be 0 (all tokens) or positive"
        if not 0 < self.top_p <= 1:
            yield f"top_p ({self.top_p}) must be above 0 and at most 1"
        if not 0.01 <= self.repetition_penalty <= 100:
            yield f"repetition_penalty ({self.repetition_penalty}) must be from 0.01 to 100 (1: none)"
        if self.seed is not None and not 0 <= self.seed < 2**63:
            yield f"seed ({self.seed}) must be from 0 to 2^63-1"
        if any(not text for text in self.stop):
            yield "stop must not hold an empty text"


@dataclass
class TrackingConfig:
    """MLflow."""

    tracking_uri: str | None = None
    """Tracking store or server; unset: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this folder."""
    experiment_name: str = "moyun"
    """Experiment that the runs go to (mlflow run's own choice wins)."""
    log_system_metrics: bool = True
    """CPU, memory and disk use every few seconds."""
    spool_dir: str = "outputs/tracking"
    """Folder of the runs' local logs, from which the store is fed; what it didn't take waits there."""
    flush_timeout: int = 60
    """Seconds to wait at the end of a run for a store that takes nothing; `python -m pipelines.sync` sends the rest."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 0, "flush_timeout")
        if not self.spool_dir:
            yield "spool_dir must name a folder"
