"""The peak of real training steps beside training/planning/memory.py's estimate, printed as a table.

python -m benchmarks.measure_memory          base: what the CPU allocator hands out, as torch's profiler sees it
python -m benchmarks.measure_memory rss      base in float32: how far the process itself grows (Linux)
"""

from __future__ import annotations

import multiprocessing
import re
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from modules.config.model import ModelConfig
from modules.config.training import TrainConfig, TrainerConfig
from modules.model.decoder import Decoder
from modules.model.loss import linear_cross_entropy
from modules.training.optimizer import make_optimizer
from modules.training.planning.memory import StepMemory

MIB = 2**20
TINY = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 1024}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 2048}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
SHORT, LONG, MIXED = [32] * 8, [1024], [16] * 8 + [100] * 2 + [500]


@dataclass(frozen=True)
class Case:
    shape: dict[str, Any]
    vocab_size: int
    lengths: list[int]
    precision: Any = "32-true"
    recompute: Any = "none"
    micro_batches: int = 1
    dropout: dict[str, float] = field(default_factory=dict)
    optimizer: Any = "adamw"

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(vocab_size=self.vocab_size, **self.shape, **self.dropout)

    def __str__(self) -> str:
        size = "tiny" if self.shape is TINY else "base"
        documents = f"{len(self.lengths)} of {min(self.lengths)}–{max(self.lengths)}"
        words = [size, f"{sum(self.lengths)} tokens", documents, self.precision, self.recompute]
        words += ["accumulated"] * (self.micro_batches > 1) + ["dropout"] * bool(self.dropout)
        words += [self.optimizer] * (self.optimizer != "adamw")
        return ", ".join(words)


TINY_CASES = [
    Case(TINY, 2000, SHORT),
    Case(TINY, 500, LONG),
    Case(TINY, 2000, MIXED, micro_batches=2),
    Case(TINY, 500, [128] * 8, recompute="selective"),
    Case(TINY, 500, MIXED, recompute="selective", dropout=DROPOUT),
    Case(TINY, 500, [64] * 64, recompute="full"),
    Case(TINY, 500, LONG, recompute="full", micro_batches=2),
    Case(TINY, 500, [256] * 2, dropout=DROPOUT),
    Case(TINY, 500, [256] * 2, recompute="full", dropout=DROPOUT),
    Case(TINY, 2000, SHORT, precision="bf16-mixed"),
    Case(TINY, 500, MIXED, precision="bf16-mixed", recompute="selective"),
    Case(TINY, 500, [128], precision="bf16-mixed", dropout=DROPOUT),
    Case(TINY, 500, MIXED, precision="bf16-true", micro_batches=2),
    Case(TINY, 500, SHORT, precision="bf16-true", recompute="full"),
    Case(TINY, 2000, MIXED, micro_batches=2, optimizer="adafactor"),
    Case(TINY, 500, SHORT, precision="bf16-true", optimizer="adafactor"),
    Case(TINY, 500, SHORT, optimizer="muon"),
    Case(TINY, 500, SHORT, precision="bf16-true", optimizer="muon"),
]
BASE_CASES = [
    Case(BASE, 16384, SHORT),
    Case(BASE, 16384, LONG),
    Case(BASE, 16384, MIXED, micro_batches=2),
    Case(BASE, 16384, [512] * 8),
    Case(BASE, 16384, [512] * 4, recompute="selective"),
    Case(BASE, 16384, MIXED, recompute="selective", micro_batches=2),
    Case(BASE, 16384, [512] * 8, recompute="full"),
    Case(BASE, 16384, SHORT, recompute="full"),
    Case(BASE, 16384, [512], dropout=DROPOUT),
    Case(BASE, 16384, MIXED, recompute="full", dropout=DROPOUT),
    Case(BASE, 16384, [128] * 8, precision="bf16-mixed"),
    Case(BASE, 16384, [1024], precision="bf16-mixed", recompute="full"),
    Case(BASE, 16384, [200, 824], precision="bf16-true"),
    Case(BASE, 16384, [1024], precision="bf16-true", recompute="selective"),
]


def estimated(case: Case) -> int:
    trainer = TrainerConfig(precision=case.precision, activation_checkpointing=case.recompute)
    step = StepMemory(case.model, trainer, case.lengths, case.micro_batches > 1, optimizer=case.optimizer)
    return step.memory().peak


def train(case: Case) -> None:
    """Two optimizer steps as lightning_module.LanguageModel takes them; the optimizer's state exists in the second."""
    decoder = Decoder(case.model).train()
    if case.precision == "bf16-true":
        decoder.bfloat16()
    elif case.precision == "bf16-mixed":
        decoder.compute_dtype = torch.bfloat16
    decoder.transformer.activation_checkpointing = case.recompute
    optimizer = make_optimizer(decoder.named_parameters(), TrainConfig(optimizer=case.optimizer), 1e-4)
    ids = torch.randint(0, case.vocab_size, (1, sum(case.lengths)))
    for _ in range(2):
        for _ in range(case.micro_batches):
            loss = decoder(ids, case.lengths, head=partial(linear_cross_entropy, labels=ids))
            (loss * (1 / ids.numel())).backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def measured(case: Case) -> int:
    """The highest running total of the CPU allocator's events, which kernels' own temporaries are among."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        train(case)
    assert profiler.profiler
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def resident(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found
    return int(found[1]) * 1024


def growth(case: Case) -> int:
    """How far the process's resident memory rises over what it was before the model was built."""
    train(Case(TINY, 500, SHORT))  # libraries allocate on first use
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    train(case)
    return resident("VmHWM") - before


def main() -> None:
    if sys.argv[1:] == ["rss"]:
        cases, measure = [case for case in BASE_CASES if case.precision == "32-true"], growth
    else:
        cases, measure = BASE_CASES, measured
    print("| | estimated, MiB | measured, MiB | ratio |\n|---|---|---|---|")
    for case in cases:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process each: memory starts from nothing
            peak = pool.apply(measure, (case,))
        print(f"| {case} | {estimated(case) / MIB:.1f} | {peak / MIB:.1f} | {estimated(case) / peak:.3f} |", flush=True)


if __name__ == "__main__":
    main()
