"""What a training run says of itself: its plan, what is otherwise in a run that went on, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np

from ...config.training import TrainingConfig
from ...data.datamodule import TextDataModule
from ...data.packing import Position
from ...training.checkpoints.run_manifest import RunManifest, manifest_differences
from ...training.checkpoints.saving import read_progress
from ...training.planning.flops import step_flops
from ...training.planning.memory_limit import GIB
from ...training.planning.plan import TrainingPlan
from ...training.precision import on_gpu
from ...training.setup import TrainingSetup
from ..tracked_run import TrackedRun
from .energy import EnergyMeter

STATUS, FORGET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def log_plan(run: TrackedRun, plan: TrainingPlan) -> None:
    """Of each split what the plan says of it; and the sizes that it comes to."""
    for name, facts in plan.splits.items():
        run.write_metrics(facts.metrics(name), 0)
    run.set_tags({f"rows.{name}": str(facts) for name, facts in plan.splits.items()})
    planned = plan.demand.memory().peak / GIB
    run.write_metrics({"cost/parameters": plan.parameters, "cost/planned_memory_gib": planned}, 0)


def log_changes(run: TrackedRun, before: RunManifest | None, now: RunManifest, start: Path | None) -> None:
    """Tag: what is otherwise from which step on. Steps that come again keep the values of the first time in MLflow."""
    if before and (changes := manifest_differences(before, now)):
        step = read_progress(start)["global_step"] if start else 0
        run.set_tags({f"moyun.changed-{run.resumed}": f"after step {step}: {'; '.join(changes.values())}"})


class CostMeter:
    """What training costs from now on; seconds and energy of a run that goes on are added to those before."""

    def __init__(self, run: TrackedRun, config: TrainingConfig, training: TrainingSetup) -> None:
        self.run, self.config, self.training = run, config, training
        self.gpu = on_gpu(config.trainer)
        self.began = time.monotonic()
        self.energy = EnergyMeter(config.trainer.devices if self.gpu else 0)
        self.resident = forget_peak()

    def log(self, checkpoint: Path, history: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """checkpoint: the newest, which says how far training has come; history: metric → (step, value)."""
        added = {"cost/seconds": time.monotonic() - self.began, **self.energy.stop()}
        step, work = 0, dict[str, float]()
        if checkpoint.exists():
            progress = read_progress(checkpoint)
            step = progress["global_step"]
            work = self.work_until(Position(**progress["progress"]["place"])) if progress.get("progress") else {}
        total = {name: value + last_value(self.run.earlier.get(name, ())) for name, value in added.items()}
        self.run.write_metrics(total | work | self.peak(history), step)

    def work_until(self, place: Position) -> dict[str, float]:
        """Tokens read; floating-point operations but where frozen matrices need fewer than are counted."""
        lengths = lengths_until(self.training.data, place)
        found = {"cost/tokens": float(lengths.sum())}
        if not self.config.lora.rank:
            found["cost/flops"] = step_flops(asdict(self.training.model), lengths)
        return found

    def peak(self, history: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, float]:
        """Of a GPU what tensors took at most, else what the process took at most, libraries and all."""
        if self.gpu:
            values = [value for _, value in history.get("train/peak_memory_gib", ())]
            return {"cost/peak_memory_gib": max(values)} if values else {}
        return {"cost/peak_memory_gib": peak_resident() / GIB} if self.resident else {}


def lengths_until(data: TextDataModule, place: Position) -> np.ndarray:
    """Tokens of each document that training has taken, epoch after epoch, up to its place in the rows."""
    documents, bounds = data.documents["train"], data.bounds["train"]
    taken = place.taken or (place.epoch * len(documents) + place.documents,)
    found = []
    for source, (first, last) in enumerate(pairwise(bounds)):
        passes, rest = divmod(taken[source], last - first)
        order = np.random.default_rng((data.seed, passes)).permutation(last - first)
        found += [np.tile(documents.lengths_of(np.arange(first, last)), passes)]
        found += [documents.lengths_of(first + order[:rest])]
    return np.concatenate(found)


def last_value(series: Sequence[tuple[int, float]]) -> float:
    return max(series, default=(0, 0.0))[1]


def forget_peak() -> bool:
    """Lets the system count the process's peak from now on; False where it can't (other systems than Linux)."""
    with suppress(OSError):
        FORGET_PEAK.write_text("5")
        return True
    return False


def peak_resident() -> int:
    """Bytes of memory that the process had at most."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
