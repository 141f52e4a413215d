"""What sections and commands share: checks, the tracking section, the keys of every stage, what `model` can name."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MISSING: Any = "???"  # OmegaConf's mark of a value that must be given


class ConfigError(ValueError):
    """All that is wrong with a configuration, one complaint a line."""

    def __init__(self, complaints: Sequence[str]) -> None:
        self.complaints = list(complaints)
        super().__init__("\n".join(f"  - {complaint}" for complaint in self.complaints))


def shown(value: Any, most: int = 60) -> str:
    """A value that somebody gave, as a message may repeat it: on one line, of about `most` characters at most."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = most
    text = brief.repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def unless(holds: Callable[[float], bool], rule: str, section: object, names: Iterable[str]) -> Iterator[str]:
    """A complaint for each field that is set and breaks a rule; NaN breaks each."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not holds(value):
            yield f"{name} ({value}) must be {rule}"


def too_small(section: object, minimum: int, *names: str) -> Iterator[str]:
    return unless(lambda value: value >= minimum, f"at least {minimum}", section, names)


def too_large(section: object, maximum: int, *names: str) -> Iterator[str]:
    return unless(lambda value: value <= maximum, f"at most {maximum:,}", section, names)


def out_of_range(section: object, *names: str) -> Iterator[str]:
    """For shares and decay rates."""
    return unless(lambda value: 0 <= value < 1, "at least 0 and below 1", section, names)


def not_positive(section: object, *names: str) -> Iterator[str]:
    return unless(lambda value: 0 < value < float("inf"), "a positive number", section, names)


@dataclass
class TrackingConfig:
    """MLflow."""

    tracking_uri: str | None = None
    """Tracking store or server; unset: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this folder."""
    experiment_name: str | None = None
    """Experiment that new runs go to (under `mlflow run`: its own); unset: that of MLFLOW_EXPERIMENT_NAME,
    MLFLOW_EXPERIMENT_ID or mlflow.set_experiment, else moyun."""
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


@dataclass
class CommandConfig:
    """What every command has."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class StageConfig(CommandConfig):
    """What every stage that makes an MLflow run has."""

    seed: int = 42
    """Of weights, shuffling and held-out rows."""
    dry_run: bool = False
    """Print what would be done (sizes, steps, memory) and stop."""

    def complaints(self) -> Iterator[str]:
        if not 0 <= self.seed < 2**32:  # NumPy's legacy generator takes no more
            yield f"seed ({self.seed}) must be from 0 to 2^32-1"


REMOVED = {
    "backend": "moyun computes with torch alone: for llama.cpp convert the model with format=gguf and start its own "
    "llama-server (docs/models.md)"
}
"""Keys that there were once → what to do instead."""

EMBEDDED = "models/poems"
"""The model that comes with moyun: pretrained on classical poems."""


URL = re.compile(r"[A-Za-z][\w+.-]*://")


def is_registered(place: str) -> bool:
    """Whether MLflow has to be asked where the model is."""
    return place.startswith(("models:/", "runs:/"))


def model_folder(path: str | Path) -> Path:
    """The folder itself, or the model in a training stage's output folder. Raises ValueError for a URL."""
    if URL.match(str(path)):
        raise ValueError(f"{path}: models aren't fetched from URLs; give a folder, or a models:/ URI")
    folder = Path(path)
    if str(path) == EMBEDDED and not folder.exists():  # wherever the command is called
        folder = Path(__file__).parents[2] / EMBEDDED
    return folder / "model" if (folder / "model" / "model.yaml").is_file() else folder
