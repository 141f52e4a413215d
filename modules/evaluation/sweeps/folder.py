"""The folder of a sweep: whose it is, and where things lie in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...config.loader import to_yaml
from ...config.sweeps.command import SweepConfig
from ...system.atomic import write_text
from ...system.bounded_read import read_plain_yaml
from ...system.process_locks import InUseError, take_lock
from .workers import wait_for_earlier

ABOUT = "sweep.yaml"
LOCK = ".lock"

ORIGIN = "made_from"
"""In sweep.yaml, beside `about`."""


def about(config: SweepConfig) -> dict[str, Any]:
    """What makes a sweep this one: another of these is another sweep, and more trials are the same one's."""
    given = dict(argument.split("=", 1) for argument in config.given)
    facts = {"stage": config.stage, "space": config.space, "metric": config.metric, "goal": config.goal}
    return facts | {"method": config.method, "seed": config.seed, "keys": dict(sorted(given.items()))}


def folder_of(config: SweepConfig) -> Path:
    """output_dir, else one that the same sweep always has: the same command goes on with it."""
    if config.output_dir:
        return Path(config.output_dir)
    text = json.dumps(about(config), sort_keys=True, ensure_ascii=False)
    return Path("outputs") / f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def claimed_sweep(config: SweepConfig, origin: str | None = None) -> Iterator[Path]:
    """Locks the sweep's folder for this process. ValueError where it is in use, or holds anything else.

    origin: what trials come from beside their keys (rows, weights, code, versions), as a digest, where it is known.
    """
    folder = folder_of(config)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={folder} is a file: choose another name")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = take_lock(folder / LOCK, f"process {os.getpid()}")
    except InUseError as error:
        raise ValueError(f"output_dir={folder} is in use by {error or 'another process'}: wait for it") from None
    try:
        require_same_sweep(folder, config, origin)
        wait_for_earlier(folder)
        yield folder
    finally:
        if made and not any(path.name not in (LOCK, ABOUT) for path in folder.iterdir()):
            shutil.rmtree(folder)
        lock.release()


def require_same_sweep(folder: Path, config: SweepConfig, origin: str | None) -> None:
    now = about(config)
    if not (folder / ABOUT).is_file():
        if inside := sorted(path.name for path in folder.iterdir() if path.name != LOCK):
            raise ValueError(
                f"output_dir={folder} holds no sweep, but {', '.join(inside[:5])}: choose another, or empty it"
            )
        write_text(folder / ABOUT, to_yaml(now | ({ORIGIN: origin} if origin else {})))
        return
    before = read_plain_yaml(folder / ABOUT)
    texts = {
        name: (json.dumps(before.get(name), ensure_ascii=False), json.dumps(now[name], ensure_ascii=False))
        for name in now
    }
    changes = [f"{name} was {old}, and is {new}" for name, (old, new) in texts.items() if old != new]
    if changes:
        raise ValueError(
            f"output_dir={folder} holds another sweep: {'; '.join(changes)}. Give what was given then, or another "
            "output_dir"
        )
    if origin and before.get(ORIGIN) not in (None, origin):
        raise ValueError(
            f"output_dir={folder} holds trials that were made from other rows, weights, code or versions of libraries: "
            "new ones couldn't be compared with them. Put back what has changed, or give another output_dir"
        )


def trial_folder(folder: Path, name: str) -> Path:
    return folder / "trials" / name


def log_of(folder: Path, name: str) -> Path:
    return folder / "logs" / f"{name}.txt"


def scores_of_rows(folder: Path, name: str) -> Path:
    """Of each validation row, by a model that was trained to confirm."""
    return folder / "scores" / f"{name}.npz"
