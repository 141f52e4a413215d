"""What sections and commands share: checks, the tracking section, the keys of every stage, what `model` can name."""

from __future__ import annotations

import functools
import logging
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..system.paths import expanded

logger = logging.getLogger("moyun.models")

MISSING: Any = "???"  # OmegaConf's mark of a value that must be given

PATH = {"holds": "path"}
"""Metadata of a field that names a file or folder: ~ at its beginning becomes the home folder when it is loaded."""

MODEL = {"holds": "path", "names": "model"}
"""Metadata of a path to a folder with a model or a tokenizer, which must be there before a stage begins."""

STORE = {"holds": "store"}
"""Metadata of a field with the URI of a tracking store, in which ~ is filled in as well."""

LINES = {"holds": "lines"}
"""Metadata of a field whose text may run over lines: on the command line \\n, \\t and \\\\ are escapes in it."""


JSON = {"holds": "json"}
"""Metadata of a field with JSON as text: a mapping in a file stands for it."""


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


def changed(section: Any, usual: Any) -> list[str]:
    """The names of the fields in which a section differs from another."""
    return [entry.name for entry in fields(section) if getattr(section, entry.name) != getattr(usual, entry.name)]


def too_small(section: object, minimum: int, *names: str) -> Iterator[str]:
    return unless(lambda value: value >= minimum, f"at least {minimum}", section, names)


def too_large(section: object, maximum: int, *names: str) -> Iterator[str]:
    return unless(lambda value: value <= maximum, f"at most {maximum:,}", section, names)


LARGEST = 10**12
"""No number but a seed has a use beyond it, and libraries fail in their own ways on larger ones."""


def extreme(section: Any) -> Iterator[str]:
    """A complaint for each number that nothing here can work with, whatever its own rule says."""
    names = [entry.name for entry in fields(section) if entry.name != "seed"]
    numbers = [name for name in names if isinstance(getattr(section, name), int | float)]
    yield from unless(lambda value: -LARGEST <= value <= LARGEST, f"at most {LARGEST:,}", section, numbers)


def out_of_range(section: object, *names: str) -> Iterator[str]:
    """For shares and decay rates."""
    return unless(lambda value: 0 <= value < 1, "at least 0 and below 1", section, names)


def not_positive(section: object, *names: str) -> Iterator[str]:
    return unless(lambda value: 0 < value < float("inf"), "a positive number", section, names)


@dataclass
class TrackingConfig:
    """MLflow."""

    tracking_uri: str | None = field(default=None, metadata=STORE)
    """Tracking store or server; unset: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this folder."""
    experiment_name: str | None = None
    """Experiment that new runs go to (that of `mlflow run --experiment-name` comes first); unset: that of
    MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID or mlflow.set_experiment, else moyun."""
    run_name: str | None = None
    """Of the stage's run in MLflow; unset: its stage and what was given, as `finetune lr=1e-3 rank=8`."""
    log_model: bool = True
    """Copy the model that training ends with into the store, for models:/ URIs; false: it stays in its folder alone."""
    log_system_metrics: bool = True
    """CPU, memory and disk use every few seconds."""
    spool_dir: str = field(default="outputs/tracking", metadata=PATH)
    """Folder of the runs' local logs, from which the store is fed; what it didn't take waits there."""
    flush_timeout: int = 60
    """Seconds to wait at the end of a run for a store that takes nothing; `python -m pipelines.sync` sends the rest."""

    def complaints(self) -> Iterator[str]:
        yield from too_small(self, 0, "flush_timeout")
        yield from too_large(self, 1_000_000, "flush_timeout")
        if not self.spool_dir:
            yield "spool_dir must name a folder"
        name = self.run_name
        if name is not None and (not name.isprintable() or not name.strip() or len(name) > 250):
            yield f"run_name ({shown(self.run_name)}) must be one line of at most 250 characters"


@dataclass
class CommandConfig:
    """What every command has."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @classmethod
    def own_arguments(cls, arguments: Sequence[str]) -> Sequence[str]:
        """The arguments as load_config takes them; a command may be given those of another."""
        return arguments


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
    "llama-server (docs/models.md)",
    "api_key": "give it in the environment, as MOYUN_API_KEY: every user of a machine sees its commands' arguments",
}
"""Keys that there were once, or might be → what to do instead."""

POEMS = "models/poems"
"""Comes with moyun: pretrained on classical poems."""
CHINESE = "models/chinese"
"""Comes with moyun: has read verse, classical and modern Chinese, and rows of six tasks."""


HUB_NAME = re.compile(r"(damo|iic|AI-ModelScope|modelscope)/[\w.-]+|[\w-]+/(nlp_|[\w-]*gpt)[\w.-]*", re.IGNORECASE)
"""A model's name on ModelScope or Hugging Face, e.g. damo/nlp_gpt3_text-generation_chinese-base."""

URL = re.compile(r"[A-Za-z][\w+.-]*://")


def is_registered(place: str) -> bool:
    """Whether MLflow has to be asked where the model is."""
    return place.startswith(("models:/", "runs:/"))


def modelscope_cache() -> Path:
    """Where ModelScope's client keeps what it downloads."""
    return Path(expanded(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope"))


def downloaded(name: str) -> Path | None:
    """The folder of a model that ModelScope's client has downloaded, in any of the layouts that it has had."""
    owner, _, model = name.partition("/")
    cache = modelscope_cache()
    roots = [cache / "hub" / "models", cache / "hub", cache / "models", cache]
    places = [root / owner / spelt for root in roots for spelt in (model, model.replace(".", "___"))]
    for root in roots:
        snapshots = (root / f"models--{owner}--{model}" / "snapshots").glob("*")
        places += sorted(snapshots, key=lambda folder: folder.stat().st_mtime, reverse=True)
    return next((place for place in places if place.is_dir()), None)


@functools.cache
def say_found(name: str, folder: Path) -> None:
    """Once a process."""
    logger.warning("%s is read from %s, where ModelScope's client put it; nothing is downloaded", name, folder)


def no_such_model(place: str | Path) -> str:
    """What to say of a model folder that isn't there."""
    if HUB_NAME.fullmatch(str(place)):
        return (
            f"{place}: no such model folder, nor has ModelScope's client put one into {modelscope_cache()} (which "
            f"MODELSCOPE_CACHE sets); none is fetched from a hub: download it first (modelscope download --model "
            f"{place}), or give its folder"
        )
    return f"{place}: no such model folder; a registered model is models:/NAME@ALIAS"


def model_folder(path: str | Path) -> Path:
    """The folder itself, the model in a training stage's output folder, or what ModelScope's client downloaded under
    this name. Raises ValueError for a URL.
    """
    if URL.match(str(path)):
        raise ValueError(f"{path}: models aren't fetched from URLs; give a folder, or a models:/ URI")
    folder = Path(expanded(str(path)))
    if str(path) in (POEMS, CHINESE) and not folder.exists():  # wherever the command is called
        folder = Path(__file__).parents[2] / path
    elif HUB_NAME.fullmatch(str(path)) and not folder.exists() and (found := downloaded(str(path))):
        say_found(str(path), found)
        folder = found
    return folder / "model" if (folder / "model" / "model.yaml").is_file() else folder
