"""What each command beside the stages can be told, and the list of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .benchmark import BenchmarkConfig
from .sections import MISSING, GenerationConfig, SizeConfig, TrainerConfig, too_small
from .serve import ServeConfig
from .stages import CommandConfig, EvaluateConfig, MainConfig, PrepareConfig, RegisterConfig, TrainingConfig


@dataclass
class GenerateConfig(CommandConfig):
    """Text from a model, to the terminal."""

    model: str = "models:/moyun@champion"
    """A model folder or a models:/ URI."""
    prompt: str = ""
    """What to continue; on the command line `prompt=` may be left out: python -m pipelines.generate "白日依山尽，"."""
    backend: Literal["torch", "llama_cpp"] = "torch"
    """What computes; llama_cpp: for a folder that convert wrote with format=gguf (extra llama_cpp)."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format to compute in; auto: the one that the model is stored in (float16 only on a GPU).

    int8: 8-bit weights and products, on a CPU only; the fastest, and a quarter of float32's memory."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def complaints(self) -> Iterator[str]:
        if self.backend == "llama_cpp" and self.dtype != "auto":
            yield f"dtype={self.dtype} is for backend=torch; a GGUF file's number format is chosen when it is converted"


@dataclass
class RehearseConfig(CommandConfig):
    """A layout over many devices, tried on this machine alone: fake tensors for shapes, a narrow model for numbers."""

    model: SizeConfig = field(default_factory=SizeConfig)
    """A size by name."""
    nodes: int = 1
    """Machines."""
    devices: int = 8
    """GPUs on each."""
    tensor_parallel: int = 1
    """Devices that share each matrix."""
    tokens: int = 2048
    """Of the forward and backward pass."""

    def complaints(self) -> Iterator[str]:
        layout = TrainerConfig(
            devices=self.devices, nodes=self.nodes, tensor_parallel=self.tensor_parallel, strategy="fsdp"
        )
        yield from layout.complaints()
        yield from too_small(self, 1, "tokens")
        if self.tensor_parallel > 0 and self.model.num_attention_heads % self.tensor_parallel:
            yield (
                f"tensor_parallel ({self.tensor_parallel}) must divide model.num_attention_heads "
                f"({self.model.num_attention_heads})"
            )
        if self.tokens > self.model.max_position_embeddings:
            yield f"tokens ({self.tokens}) is over model.max_position_embeddings ({self.model.max_position_embeddings})"


@dataclass
class ConvertConfig(CommandConfig):
    """A model folder from one format to another, bit by bit."""

    source: str = MISSING
    """A folder of any format, a training checkpoint too, or a models:/ URI of moyun's."""
    target: str = MISSING
    """The new folder; nothing is overwritten."""
    adapter: str | None = None
    """A folder of adapters trained on the source (outputs/…/adapter), to be merged into the target."""
    format: Literal["moyun", "huggingface", "modelscope", "megatron", "gguf"] = "moyun"
    """Of the target. modelscope: the layout of base and large; megatron: that of 1.3B and up; gguf: for llama.cpp."""
    tensor_parallel: int = 1
    """For format=megatron: into how many shards, one a device; must divide heads and vocabulary."""
    dtype: Literal["keep", "float32", "bfloat16", "float16", "q8_0"] = "keep"
    """Number format of the target; keep: the source's; q8_0 (format=gguf): 8 bits, with a scale every 32 numbers."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 1, "tensor_parallel")
        if self.tensor_parallel > 1 and self.format != "megatron":
            yield f"tensor_parallel={self.tensor_parallel} needs format=megatron; format={self.format} isn't cut"
        if self.dtype == "q8_0" and self.format != "gguf":
            yield f"dtype=q8_0 needs format=gguf; format={self.format} can't hold it"


@dataclass
class CompareConfig(CommandConfig):
    """Two runs side by side: python -m pipelines.compare RUN RUN."""

    one: str = MISSING
    """A run id, a models:/ URI, a model folder, or a training stage's output folder; `one=` may be left out."""
    other: str = MISSING
    """The run to compare it with; `other=` may be left out."""
    tolerance: float = 1e-4
    """A difference between two losses, as a share of them, that rounding alone may come to."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 0, "tolerance")


@dataclass
class SyncConfig(CommandConfig):
    """What runs couldn't send to the tracking store (tracking.spool_dir), now."""


STAGES: dict[str, type[CommandConfig]] = {
    "main": MainConfig,
    "prepare": PrepareConfig,
    "pretrain": TrainingConfig,
    "finetune": TrainingConfig,
    "evaluate": EvaluateConfig,
    "register": RegisterConfig,
    "generate": GenerateConfig,
    "serve": ServeConfig,
    "rehearse": RehearseConfig,
    "convert": ConvertConfig,
    "compare": CompareConfig,
    "sync": SyncConfig,
    "benchmark": BenchmarkConfig,
}
