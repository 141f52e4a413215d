"""Where a training run writes, and where it begins: anew, in its own interrupted run, or with another's checkpoint."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import mlflow

from modules.checkpoint import new_folder, write_architecture
from modules.checkpoint_callback import checkpoints_in
from modules.config import TrainingConfig
from modules.resume import (
    CHECKPOINTS,
    Origin,
    differences,
    given_checkpoint,
    newest_sound,
    origin_of,
    read_origin,
    require_same,
    write_origin,
)
from modules.rows import fingerprint
from modules.strategies import read_progress
from modules.tracking import TrackedRun

from .command_line import show
from .fitting import Training


def known_folder(stage: str, config: TrainingConfig) -> str | None:
    """Where the run will write, as far as it is known before there is a run; a dry run writes nowhere."""
    if config.dry_run or config.output_dir:
        return None if config.dry_run else config.output_dir
    # What `mlflow run` made, or whoever starts the same job again.
    given = None if mlflow.active_run() else os.environ.get("MLFLOW_RUN_ID")
    return f"outputs/{stage}-{given}" if given else None


def describe_origin(
    stage: str, run_id: str, config: TrainingConfig, training: Training, parent: dict[str, str] | None
) -> Origin:
    data = {name: fingerprint(split) for name, split in training.splits.items() if name != "test"}
    base = parent["weights_sha256"] if parent else None
    return origin_of(stage, run_id, config, data, training.tokenizer.fingerprint, base)


def where_to_start(
    config: TrainingConfig, before: Origin | None, now: Origin, total_steps: int
) -> tuple[Path | None, Origin]:
    """The checkpoint to go on from, None for the first step; with what the run is made from.

    ValueError where it is of another training, or of a finished one.
    """
    given = config.train.resume_from
    if before:
        place = Path(known_folder(now.stage, config) or ".") / CHECKPOINTS
        require_same(before, now, config.train.allow_changed, place)
        now = dataclasses.replace(now, resumed_from=before.resumed_from)
        checkpoint = newest_sound(place) or (given_checkpoint(before.resumed_from) if before.resumed_from else None)
    elif given and given != "auto":
        checkpoint = given_checkpoint(given)
        now = dataclasses.replace(now, resumed_from=str(checkpoint))
        if source := read_origin(checkpoint.parent):
            require_same(source, now, config.train.allow_changed, checkpoint.parent)
        if (step := read_progress(checkpoint)["global_step"]) >= total_steps:
            raise ValueError(
                f"train.resume_from={given} is of step {step}, and training ends at step {total_steps}: "
                "raise train.max_steps or train.max_epochs, and allow it with train.allow_changed"
            )
    else:
        return None, now
    step = read_progress(checkpoint)["global_step"] if checkpoint else 0
    show(f"{now.stage}: goes on", {"at step": f"{step:,}", "from": checkpoint or "the beginning: no checkpoint yet"})
    return checkpoint, now


def tell_changes(run: TrackedRun, before: Origin | None, now: Origin, start: Path | None) -> None:
    """Tag: what is otherwise from which step on. Steps that come again keep the values of the first time in MLflow."""
    if before and (changes := differences(before, now)):
        step = read_progress(start)["global_step"] if start else 0
        run.set_tags({f"moyun.changed-{run.resumed}": f"after step {step}: {'; '.join(changes.values())}"})


def followed(config: TrainingConfig) -> Path | None:
    """Where a process that isn't the first goes on: at what the first one finds sound, which it tells when it loads."""
    given = config.train.resume_from
    place = Path(config.output_dir) / CHECKPOINTS if config.output_dir else None
    if place and given and (found := checkpoints_in(place)):
        return next(iter(found.values()))
    if given and given != "auto":
        return Path(given)
    before = read_origin(place) if place and given else None
    return Path(before.resumed_from) if before and before.resumed_from else None


def describe_checkpoints(folder: Path, training: Training, origin: Origin) -> None:
    """What lets every checkpoint of the run be opened as a model, and gone on from."""
    if folder.exists():
        for name in ("model", "adapter"):  # made of a checkpoint by a process that didn't get to tell of it
            shutil.rmtree(folder.parent / name, ignore_errors=True)
        write_origin(folder, origin)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder, "a run") as draft:
        write_architecture(draft, training.model)
        training.tokenizer.save(draft)
        write_origin(draft, origin)
