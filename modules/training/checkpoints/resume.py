"""Going on with an interrupted run: whose folder it is, what was different then, and which checkpoint is sound."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...checkpoint.model_folder import write_architecture
from ...checkpoint.weights import CheckpointError
from ...config.assignments import dotted_items
from ...config.training import TrainingConfig
from ...data.datamodule import TextDataModule
from ...data.packing import Position
from ...system.atomic import DRAFT, drafts_in, new_folder, remove
from ...system.checksums import damage
from ...system.process_locks import InUseError, take_lock
from ..callbacks import checkpoints_in
from ..planning.plan import plan_from
from ..planning.recipe import fill
from ..precision import settle_precision
from ..setup import TrainingSetup
from .run_manifest import (
    CHECKPOINTS,
    LOCK,
    RunManifest,
    manifest_differences,
    read_run_manifest,
    require_same,
    write_run_manifest,
)
from .saving import PROGRESS, read_progress

logger = logging.getLogger("moyun.resume")

COUNTED_KEYS = ("train.batch_size", "train.batch_tokens", "seed", "data", "data.sequence_length", "data.over_long")
"""What decides which rows a step takes."""


@contextlib.contextmanager
def claimed(output_dir: str | None, resume: str | None) -> Iterator[RunManifest | None]:
    """Locks output_dir for this process; yields the manifest of the run in it, None where it is new or empty.

    Raises ValueError where another process has it, or where it holds anything else: nothing is overwritten.
    """
    if output_dir is None:
        yield None
        return
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={folder} is a file: choose another name")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = take_lock(folder / LOCK, f"process {os.getpid()} on {os.uname().nodename}")
    except InUseError as error:
        owner = str(error) or "another process"
        raise ValueError(f"output_dir={folder} is in use by {owner}: choose another, or wait for it") from None
    try:
        yield earlier_run(folder, resume)
    finally:
        if made and not any(path.name != LOCK for path in folder.iterdir()):  # refused before there was anything
            shutil.rmtree(folder)
        lock.release()


def earlier_run(folder: Path, resume: str | None) -> RunManifest | None:
    inside = sorted(path.name for path in folder.iterdir() if path.name != LOCK and not DRAFT.fullmatch(path.name))
    manifest = read_run_manifest(folder / CHECKPOINTS) if inside else None
    same = manifest and resume and (resume == "auto" or str(Path(resume).resolve()) == manifest.resumed_from)
    if not inside or same:
        # What a killed process left half written; whoever has the folder's lock is the only one to write there.
        for path in [*drafts_in(folder), *(folder / CHECKPOINTS).glob(".*.tmp")]:
            remove(path)
        return manifest
    if manifest:
        hint = "it holds a run, which train.resume_from=auto goes on with, or takes as it is where it is finished"
    else:
        hint = f"it holds {', '.join(inside[:5])}"
    raise ValueError(f"output_dir={folder} isn't empty: {hint}. Nothing is overwritten: choose another, or empty it")


def newest_sound(checkpoints: Path) -> Path | None:
    """The newest checkpoint whose files are what was written; newer ones that aren't are put aside.

    None where there is none; CheckpointError where all are damaged, which then stay where they are.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(checkpoints_in(checkpoints).values()):
        if (wrong := damage(path)) is None:
            for other, reason in damaged:
                put_aside(other, reason)
            return path
        damaged.append((path, wrong))
    if damaged:
        all_of_them = ", ".join(f"{path.name} ({wrong})" for path, wrong in damaged)
        raise CheckpointError(
            f"none of the checkpoints in {checkpoints} is sound: {all_of_them}; start again in another output_dir"
        )
    return None


def put_aside(path: Path, wrong: str) -> None:
    aside = path.with_name(f"damaged.{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    logger.warning("%s is damaged (%s): it was renamed to %s, and an earlier one is taken", path, wrong, aside.name)


def given_checkpoint(resume_from: str) -> Path:
    """The checkpoint that train.resume_from names. ValueError for what is none, or damaged."""
    path = Path(resume_from)
    if not (path / PROGRESS).is_file():
        raise ValueError(f"train.resume_from={resume_from} is no checkpoint; give one of a run's checkpoints/*.ckpt")
    if wrong := damage(path):
        raise CheckpointError(f"train.resume_from={resume_from} is damaged ({wrong}); take another checkpoint")
    return path.resolve()


def where_to_start(
    config: TrainingConfig,
    folder: str | None,
    earlier: RunManifest | None,
    manifest: RunManifest,
    training: TrainingSetup,
) -> tuple[Path | None, RunManifest, TrainingSetup]:
    """The checkpoint to go on from, None for the first step; with the manifest to write, and the plan of what is left.

    Args:
        folder: The run's, where it is known before the run has begun; `earlier` is the manifest found in it.

    Raises:
        ValueError: The checkpoint is of another training, or of one that has taken its last step.
    """
    given, source = config.train.resume_from, earlier
    if earlier:
        place = Path(folder or ".") / CHECKPOINTS
        require_same(earlier, manifest, config.train.allow_changed, place)
        manifest = dataclasses.replace(manifest, resumed_from=earlier.resumed_from)
        checkpoint = newest_sound(place) or (given_checkpoint(earlier.resumed_from) if earlier.resumed_from else None)
    elif given and given != "auto":
        checkpoint = given_checkpoint(given)
        manifest = dataclasses.replace(manifest, resumed_from=str(checkpoint))
        if source := read_run_manifest(checkpoint.parent):
            require_same(source, manifest, config.train.allow_changed, checkpoint.parent)
    else:
        return None, manifest, training
    if checkpoint is None:
        return None, manifest, training
    changes = manifest_differences(source, manifest) if source else {}
    training = with_progress(config, training, checkpoint, changes)
    total_steps = training.plan.total_steps
    if not earlier and (step := read_progress(checkpoint)["global_step"]) >= total_steps:
        raise ValueError(
            f"train.resume_from={given} is of step {step}, and training ends at step {total_steps}: "
            "raise train.max_steps or train.max_epochs, and allow it with train.allow_changed"
        )
    return checkpoint, manifest, training


def with_progress(
    config: TrainingConfig, training: TrainingSetup, checkpoint: Path, changes: Iterable[str]
) -> TrainingSetup:
    """The plan of what is left at a checkpoint. ValueError where its rows can't be gone on with as asked."""
    progress = read_progress(checkpoint).get("progress")
    if progress is None and (counted := sorted(set(changes) & set(COUNTED_KEYS))):
        raise ValueError(
            f"{checkpoint} is of an older moyun and doesn't say which rows were trained on, so {', '.join(counted)} "
            "can't change with it: go on with what was given then, and change it at the first checkpoint written now"
        )
    return dataclasses.replace(training, plan=plan_from(config.train, training.plan, training.data, progress))


def settle_format(config: TrainingConfig, folder: str | None, before: RunManifest | None = None) -> None:
    """Replaces trainer.precision=auto, and what a recipe would set, by what the run that is gone on with had.

    folder: the run's, where it is known before the run has begun; `before` is the manifest found in it.
    """
    given = config.train.resume_from
    places = [Path(folder) / CHECKPOINTS] if folder and given else []
    places += [Path(given).parent] if given and given != "auto" else []
    earlier = before or next(filter(None, map(read_run_manifest, places)), None)
    settle_precision(config.trainer, earlier.config["trainer"]["precision"] if earlier else None)
    if earlier and config.recipe in (None, earlier.config.get("recipe", "poetry")):  # another one's values are others
        fill(config, dict(dotted_items(earlier.config)))
        if "recipe" not in earlier.config and config.train.max_steps:  # finetune then had max_epochs beside it
            config.train.max_epochs = config.train.max_epochs or earlier.config["train"]["max_epochs"]


def describe_start(checkpoint: Path | None, data: TextDataModule) -> dict[str, str]:
    """Where a resumed run goes on, as lines to show."""
    if checkpoint is None:
        return {"at step": "0", "from": "the beginning: no checkpoint yet"}
    progress = read_progress(checkpoint)
    lines = {"at step": f"{progress['global_step']:,}", "from": str(checkpoint)}
    if found := progress.get("progress"):
        place, other = Position(**found["place"]), found["counted"]["rows"] != data.rows
        if data.mixture:
            lines["in epoch"] = f"{place.epoch + 1} of the mixture"
            at = data.start if data.start.step == place.step else place  # where it goes on, if that is elsewhere
            return lines | {f"  {name}": where for name, where in data.where_sources_are(at).items()}
        taken = f"after {place.documents:,} of {len(data.documents['train']):,} documents"
        lines["in epoch"] = f"{place.epoch + 1}, {'from its beginning, as the rows are others' if other else taken}"
    return lines


def followed(config: TrainingConfig) -> Path | None:
    """Where a process that isn't the first goes on: at what the first one finds sound, which it tells when it loads."""
    given = config.train.resume_from
    place = Path(config.output_dir) / CHECKPOINTS if config.output_dir else None
    if place and given and (found := checkpoints_in(place)):
        return next(iter(found.values()))
    if given and given != "auto":
        return Path(given)
    earlier = read_run_manifest(place) if place and given else None
    return Path(earlier.resumed_from) if earlier and earlier.resumed_from else None


def describe_checkpoints(folder: Path, training: TrainingSetup, manifest: RunManifest) -> None:
    """What lets every checkpoint of the run be opened as a model, and gone on from."""
    if folder.exists():
        for name in ("model", "adapter"):  # made of a checkpoint by a process that didn't get to tell of it
            shutil.rmtree(folder.parent / name, ignore_errors=True)
        write_run_manifest(folder, manifest)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder, "a run") as draft:
        write_architecture(draft, training.model)
        training.tokenizer.save(draft)
        write_run_manifest(draft, manifest)
