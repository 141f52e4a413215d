"""What a training run says of itself: its plan, and what is otherwise in a run that went on."""

from __future__ import annotations

from pathlib import Path

from ...training.checkpoints.run_manifest import RunManifest, manifest_differences
from ...training.checkpoints.saving import read_progress
from ...training.planning.plan import TrainingPlan
from ..tracked_run import TrackedRun


def log_plan(run: TrackedRun, plan: TrainingPlan) -> None:
    """Of each split what the plan says of it."""
    for name, facts in plan.splits.items():
        run.write_metrics(facts.metrics(name), 0)
    run.set_tags({f"rows.{name}": str(facts) for name, facts in plan.splits.items()})


def log_changes(run: TrackedRun, before: RunManifest | None, now: RunManifest, start: Path | None) -> None:
    """Tag: what is otherwise from which step on. Steps that come again keep the values of the first time in MLflow."""
    if before and (changes := manifest_differences(before, now)):
        step = read_progress(start)["global_step"] if start else 0
        run.set_tags({f"moyun.changed-{run.resumed}": f"after step {step}: {'; '.join(changes.values())}"})
