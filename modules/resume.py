"""Going on with an interrupted run: whose folder it is, what was different then, and which checkpoint is sound.

A run's folder of checkpoints holds origin.json: the MLflow run, the resolved configuration, and hashes of the rows, the
tokenizer and the weights that training started from.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .checkpoint import sync
from .checkpoint_callback import checkpoints_in
from .config import TrainingConfig, to_dict
from .drafts import DRAFT, drafts_in, remove
from .file_list import damage
from .redaction import redact
from .row_files import write_json
from .small_files import read_json
from .strategies import PROGRESS
from .tracking.lineage import flatten
from .weights import CheckpointError

logger = logging.getLogger("moyun.resume")
CHECKPOINTS = "checkpoints"
ORIGIN = "origin.json"
LOCK = ".lock"
FREE = (
    "output_dir", "dry_run", "tracking", "generation", "train.resume_from", "train.allow_changed",
    "train.log_every_n_steps", "train.save_every_n_steps", "train.save_top_k", "train.sample_prompts",
    "train.on_nonfinite", "trainer.accelerator", "trainer.devices", "trainer.nodes", "trainer.strategy",
    "trainer.tensor_parallel", "trainer.process_group_timeout", "trainer.activation_checkpointing",
    "trainer.device_memory", "trainer.progress_bar",
)  # fmt: skip
"""Keys that change nothing about what is learnt, but for the order in which devices add up."""
HASHED = ("data.path", "data.columns", "data.validation_path", "data.test_path", "data.cache_dir", "tokenizer.path")
"""Places: what was found there is compared instead."""
FIXED = ("model.", "tokenizer", "stage")
"""What a checkpoint can't be gone on with under another one."""


@dataclass(frozen=True)
class Origin:
    """What a run was made from."""

    stage: str
    run_id: str
    config: dict[str, Any]
    data: dict[str, str]
    """Split → fingerprint of its rows."""
    tokenizer: str
    init_from: str | None
    """SHA-256 of the weights that training started from."""
    resumed_from: str | None = None
    """The checkpoint of another run that it began with."""
    finished: bool = False
    model_uri: str | None = None
    """What a finished run has logged."""
    metrics: dict[str, float] | None = None

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of what training started from beside its rows, as tags of the run."""
        known = {"sha256.tokenizer": self.tokenizer, "sha256.init_from": self.init_from}
        return {name: value for name, value in known.items() if value}


def origin_of(
    stage: str, run_id: str, config: TrainingConfig, data: Mapping[str, str], tokenizer: str, init_from: str | None
) -> Origin:
    return Origin(stage, run_id, redact(to_dict(config)), dict(data), tokenizer, init_from)


def write_origin(folder: Path, origin: Origin) -> None:
    write_json(folder / ORIGIN, asdict(origin))
    sync(folder)


def read_origin(checkpoints: Path) -> Origin | None:
    """None where there is none; CheckpointError for one that can't be read."""
    path = checkpoints / ORIGIN
    if not path.is_file():
        return None
    try:
        return Origin(**read_json(path))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): give another output_dir, and train.resume_from with one of the checkpoints "
            "in this one"
        ) from error


def require_same(before: Origin, now: Origin, allowed: list[str], place: Path) -> None:
    """ValueError naming all that is different and isn't allowed to be."""
    changes = {
        name: text
        for name, text in differences(before, now).items()
        if name.startswith(FIXED) or not any(name == key or name.startswith(f"{key}.") for key in allowed)
    }
    if not changes:
        return
    hint = (
        ""
        if any(name.startswith(FIXED) for name in changes)
        else (f"; or go on all the same with train.allow_changed=[{','.join([*allowed, *changes])}]")
    )
    raise ValueError(
        f"{place} holds a run that was made differently: {'; '.join(changes.values())}. Give what was given then, "
        f"or another output_dir{hint}"
    )


def differences(before: Origin, now: Origin) -> dict[str, str]:
    """Key → what has changed, in words."""
    found = {}
    if before.stage != now.stage:
        found["stage"] = f"it is of {before.stage}, not {now.stage}"
    old, new = (dict(flatten(origin.config)) for origin in (before, now))
    for key in sorted(old.keys() | new.keys()):
        if key.startswith((*FREE, *HASHED, "train.init_from")) or old.get(key) == new.get(key):
            continue
        if key == "model.vocab_size" and before.tokenizer != now.tokenizer:
            continue  # it follows from the tokenizer, which is named below
        found[key] = f"{key} was {old.get(key)}, and is {new.get(key)}"
    splits = sorted(before.data.keys() | now.data.keys())
    if others := [split for split in splits if before.data.get(split) != now.data.get(split)]:
        found["data"] = f"the rows for {' and '.join(others)} are others"
    if before.tokenizer != now.tokenizer:
        found["tokenizer"] = "the tokenizer is another"
    if before.init_from != now.init_from:
        found["train.init_from"] = "the weights that training starts from are others"
    return found


@contextlib.contextmanager
def claimed(output_dir: str | None, resume: str | None) -> Iterator[Origin | None]:
    """Locks output_dir for this process; yields the origin of the run in it, None where it is new or empty.

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
    with locked(folder):
        try:
            yield earlier_run(folder, resume)
        finally:
            if made and not any(path.name != LOCK for path in folder.iterdir()):  # refused before there was anything
                shutil.rmtree(folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The system frees it with the process, however that ends; on a file system without locks it holds nobody back."""
    with (folder / LOCK).open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            raise ValueError(f"output_dir={folder} is in use by {owner}: choose another, or wait for it") from None
        except OSError as error:
            logger.warning("%s has no locks (%s): see to it that no other run writes there", folder, error)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        stream.flush()
        yield


def earlier_run(folder: Path, resume: str | None) -> Origin | None:
    inside = sorted(path.name for path in folder.iterdir() if path.name != LOCK and not DRAFT.fullmatch(path.name))
    if not inside:
        remove_drafts(folder)
        return None
    origin = read_origin(folder / CHECKPOINTS)
    if origin and resume and (resume == "auto" or same_place(resume, origin.resumed_from)):
        remove_drafts(folder)
        return origin
    if origin:
        hint = "it holds a run, which train.resume_from=auto goes on with, or takes as it is where it is finished"
    else:
        hint = f"it holds {', '.join(inside[:5])}"
    raise ValueError(f"output_dir={folder} isn't empty: {hint}. Nothing is overwritten: choose another, or empty it")


def same_place(resume_from: str, known: str | None) -> bool:
    return known is not None and str(Path(resume_from).resolve()) == known


def remove_drafts(folder: Path) -> None:
    """What a killed process left half written; whoever has the folder's lock is the only one to write there."""
    for path in [*drafts_in(folder), *(folder / CHECKPOINTS).glob(".*.tmp")]:
        remove(path)


def newest_sound(checkpoints: Path) -> Path | None:
    """The newest checkpoint whose files are what was written; newer ones that aren't are put aside.

    None where there is none; CheckpointError where all are damaged, which then stay where they are.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(checkpoints_in(checkpoints).values()):
        wrong = damage(path)
        if wrong is None:
            for other, reason in damaged:
                put_aside(other, reason)
            return path
        damaged.append((path, wrong))
    if damaged:
        raise CheckpointError(
            f"none of the checkpoints in {checkpoints} is sound: "
            f"{', '.join(f'{path.name} ({wrong})' for path, wrong in damaged)}; start again in another output_dir"
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
        raise ValueError(
            f"train.resume_from={resume_from} is no checkpoint; give one of a run's checkpoints/*.ckpt folders"
        )
    if wrong := damage(path):
        raise CheckpointError(f"train.resume_from={resume_from} is damaged ({wrong}); take another checkpoint")
    return path.resolve()
