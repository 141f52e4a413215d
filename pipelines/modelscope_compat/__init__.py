"""What the GPT-3 model cards' scripts import from ModelScope, over moyun's stages and local folders: what a script says
becomes moyun's keys (docs/modelscope.md), and what has no counterpart is refused by name.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets

from modules.config.loader import load_config
from modules.data.reading.column_names import MESSAGES
from modules.data.rows import load_rows
from modules.data.sources import has_split, has_splits
from modules.inference.given_texts import is_one, texts_of
from modules.inference.text_generator import TextGenerator

from .. import pipeline as text_generator
from ..cli.launch import require_processes
from ..evaluate import evaluate
from ..finetune import finetune
from ..train import TrainResult
from .recipe import configured, read_config, refusal

__all__ = ["MsDataset", "Tasks", "Trainers", "build_trainer", "pipeline", "read_config"]

ARGUMENTS = {"model": "train.init_from", "max_epochs": "train.max_epochs", "work_dir": "output_dir", "seed": "seed"}
KNOWN = (*ARGUMENTS, "train_dataset", "eval_dataset", "cfg_modify_fn", "keys")
Trainers = SimpleNamespace(gpt3_trainer="nlp-gpt3-trainer")
Tasks = SimpleNamespace(text_generation="text-generation")


@dataclass(frozen=True)
class MsDataset:
    """Rows of a local file or folder, read when they are needed."""

    source: str
    split: str
    columns: Mapping[str, str]
    changes: tuple[Callable[[dict[str, str]], dict[str, str]], ...] = ()

    @staticmethod
    def load(name: str, split: str | None = None) -> Any:
        """{split: MsDataset} of a folder with split files; of a file, or with `split`, the rows themselves."""
        if not Path(name).expanduser().exists():
            fetch = "modelscope download --dataset NAME --local_dir FOLDER"
            raise ValueError(f"MsDataset.load({name!r}): no such file or folder; nothing is fetched here: {fetch}")
        if split or not has_splits(name):
            return MsDataset(name, split or "train", {})
        return {s: MsDataset(name, s, {}) for s in ("train", "validation", "test") if has_split(name, s)}

    def remap_columns(self, columns: Mapping[str, str]) -> MsDataset:
        if self.changes:
            raise ValueError("remap_columns comes before map here: what map gets are rows with src_txt and tgt_txt")
        return replace(self, columns={**self.columns, **columns})

    def map(self, change: Callable[[dict[str, str]], dict[str, str]]) -> MsDataset:
        return replace(self, changes=(*self.changes, change))

    @cached_property
    def rows(self) -> datasets.Dataset:
        rows = load_rows(self.source, self.columns, self.split)
        if MESSAGES in rows.column_names:  # which the trainer reads as they are
            rows = rows.select_columns([MESSAGES])
        return reduce(datasets.Dataset.map, self.changes, rows)


def build_trainer(name: str = Trainers.gpt3_trainer, default_args: Mapping[str, Any] | None = None) -> Trainer:
    """`keys` among the arguments are moyun's own, a list of key=value, which win."""
    given = dict(default_args or {})
    if name != Trainers.gpt3_trainer or not {"model", "train_dataset"} <= given.keys():
        raise ValueError("name=Trainers.gpt3_trainer is known here, and default_args with model and train_dataset")
    for argument in given.keys() - set(KNOWN):
        near = difflib.get_close_matches(argument, KNOWN, 1)
        raise ValueError(f"{argument}: did you mean {near[0]}?") if near else refusal(argument, given[argument])
    keys = list(configured(read_config(str(given["model"])), given.get("cfg_modify_fn") or (lambda config: config)))
    keys += [f"{key}={given[argument]}" for argument, key in ARGUMENTS.items() if argument in given]
    named = {"train": given["train_dataset"], "validation": given.get("eval_dataset")}
    rows = {split: getattr(value, "rows", value) for split, value in named.items() if value is not None}
    return Trainer(["recipe=poetry", *keys, *given.get("keys", [])], datasets.DatasetDict(rows))


@dataclass
class Trainer:
    keys: list[str]
    rows: datasets.DatasetDict
    result: TrainResult | None = None

    def train(self, checkpoint_path: str | None = None) -> TrainResult:
        """Goes on by itself where a run in work_dir stopped."""
        config = load_config("finetune", self.keys + [f"train.resume_from={checkpoint_path}"] * bool(checkpoint_path))
        require_processes(config.trainer)
        self.result = finetune(config, rows=self.rows)
        return self.result

    def evaluate(self, checkpoint_path: str | None = None) -> dict[str, float]:
        """The scores on eval_dataset of a model folder, by default the one that was trained."""
        folder = checkpoint_path or (self.result and self.result.model) or load_config("finetune", self.keys).output_dir
        with tempfile.TemporaryDirectory() as place:
            self.rows["validation"].to_json(f"{place}/test.jsonl", force_ascii=False)
            found = evaluate(load_config("evaluate", [f"model={folder}", f"data.test_path={place}/test.jsonl"]))
        return {metric.name: metric.value for metric in found.evaluations["model"].metrics}


def pipeline(task: str, model: str, **parameters: Any) -> Callable[..., Any]:
    """pipe(text, max_length=…, …); max_length counts the tokens of the prompt too, as there."""
    return partial(write, text_generator(task, model, **parameters))


def write(generator: TextGenerator, text: Any, max_length: int | None = None, **parameters: Any) -> Any:
    if max_length is None:
        return generator(text, **parameters)
    if not is_one(text):
        return [write(generator, one, max_length, **parameters) for one in texts_of(text)]
    tokens = len(generator.encode([text])[0])
    if tokens >= max_length:
        raise ValueError(f"max_length={max_length} counts the prompt too, which has {tokens} tokens")
    return generator(text, max_new_tokens=max_length - tokens, **parameters)
