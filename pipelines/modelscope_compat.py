"""What the GPT-3 model cards' scripts import from ModelScope, over moyun's stages and local folders: what a script says
becomes moyun's keys (docs/modelscope.md), and what has no counterpart is refused by name.
"""

from __future__ import annotations

import copy
import difflib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets

from modules.config.assignments import dotted_items
from modules.config.loader import load_config
from modules.config.training import TrainConfig
from modules.data.rows import load_rows
from modules.data.sources import has_split, has_splits
from modules.inference.text_generator import TextGenerator, texts_of
from modules.system.bounded_read import read_json
from modules.training.optimizer import learning_rate_factor

from . import find_model
from . import pipeline as text_generator
from .cli.launch import require_processes
from .evaluate import evaluate
from .finetune import finetune
from .train import TrainResult

ARGUMENTS = {"model": "train.init_from", "max_epochs": "train.max_epochs", "work_dir": "output_dir", "seed": "seed"}
KNOWN = (*ARGUMENTS, "train_dataset", "eval_dataset", "cfg_modify_fn", "keys")
KEYS = {
    "train.optimizer.lr": "train.learning_rate", "train.optimizer.weight_decay": "train.weight_decay",
    "train.optimizer.eps": "train.epsilon", "train.dataloader.batch_size_per_gpu": "train.batch_size",
    "preprocessor.sequence_length": "data.sequence_length",
    "train.max_epochs": "train.max_epochs", "train.seed": "seed",
}  # fmt: skip
EXPECTED = {"optimizer.type": "AdamW", "lr_scheduler.type": "LambdaLR", "lr_scheduler.options.by_epoch": False}
NO_EFFECT = ("evaluation.", "train.dataloader.workers_per_gpu", "model.checkpoint_", "megatron.checkpoint_")
INSTEAD = {
    "train.optimizer": "train.optimizer=muon", "train.lr_scheduler": "train.schedule=cosine",
    "CheckpointHook": "train.save_every_n_steps=N", "EvaluationHook": "train.validate_every_n_steps=N",
    "parallel_size": "trainer.tensor_parallel=N", "launcher": "trainer.devices=N",
}  # fmt: skip
"""What can't be taken as it is said there → a key of moyun's for it."""

Trainers = SimpleNamespace(gpt3_trainer="nlp-gpt3-trainer")
Tasks = SimpleNamespace(text_generation="text-generation")


class Node(dict[str, Any]):
    """A section of a configuration, its keys as attributes too; one that isn't there yet is empty."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.setdefault(name, [] if name == "hooks" else Node())

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = nodes(value)


def nodes(value: Any) -> Any:
    return Node({name: nodes(part) for name, part in value.items()}) if isinstance(value, Mapping) else value


def read_config(model: str) -> Node:
    """configuration.json of a model folder; empty where it has none."""
    path = find_model(model) / "configuration.json"
    return nodes(read_json(path)) if path.is_file() else Node()


def refusal(name: str, value: Any) -> ValueError:
    key = next((key for part, key in INSTEAD.items() if part in f"{name} {value}"), "KEY=VALUE")
    remedy = f"leave it out, or say it in moyun's keys, default_args={{…, 'keys': ['{key}']}}"
    return ValueError(f"{name}={value!r} isn't known here: {remedy} (python -m pipelines.finetune --help has them)")


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
        return reduce(datasets.Dataset.map, self.changes, load_rows(self.source, self.columns, self.split))


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
    return Trainer([*keys, *given.get("keys", [])], datasets.DatasetDict(rows))


def configured(config: Node, change: Callable[[Node], Node]) -> Iterator[str]:
    """moyun's keys for what the folder says of training, and for all that cfg_modify_fn changes."""
    before, hooks = dict(dotted_items(config)), [*config.train.hooks, {"type": "MegatronHook"}]
    changed = copy.deepcopy(config)
    for name, value in dotted_items(change(changed) or changed):
        if name in KEYS:
            yield f"{KEYS[name]}={value}"
        elif name == "train.optimizer.betas":
            yield from (f"train.beta{number}={beta}" for number, beta in enumerate(value, 1))
        elif name == "train.lr_scheduler.lr_lambda" and (warmup := noam_warmup(value)):
            yield from ("train.schedule=noam", f"train.warmup_steps={warmup}")
        elif name == "train.hooks":
            for hook in (hook for hook in value if hook not in hooks):
                raise refusal(name, hook)
        elif value not in (EXPECTED.get(name[6:], before.get(name)), {}) and not name.startswith(NO_EFFECT):
            raise refusal(name, value)


def noam_warmup(factor: Callable[[int], float]) -> int | None:
    """The warm-up of a function of the step that has noam's values; None for any other function."""
    noam = TrainConfig(schedule="noam", warmup_steps=max(1, round(factor(0) ** (-2 / 3))) if factor(0) > 0 else 1)
    steps = (n * noam.warmup_steps // 2 + more for n in (0, 1, 2, 3, 9, 10**8) for more in (0, 1))
    same = all(math.isclose(factor(step), learning_rate_factor(step, noam, 10**9), rel_tol=1e-6) for step in steps)
    return noam.warmup_steps if same else None


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
    if not isinstance(text, str | Mapping):
        return [write(generator, one, max_length, **parameters) for one in texts_of(text)]
    tokens = len(generator.tokenizer.encode_prompt(texts_of([text])[0]))
    if tokens >= max_length:
        raise ValueError(f"max_length={max_length} counts the prompt too, which has {tokens} tokens")
    return generator(text, max_new_tokens=max_length - tokens, **parameters)
