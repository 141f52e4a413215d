"""ModelScope's configuration (configuration.json and cfg_modify_fn) as moyun's keys."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from modules.config.assignments import dotted_items
from modules.config.training import TrainConfig
from modules.system.bounded_read import read_json
from modules.training.optimizer import learning_rate_factor

from .. import find_model

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


def configured(config: Node, change: Callable[[Node], Node]) -> Iterator[str]:
    """moyun's keys for what the folder says of training, and for all that cfg_modify_fn changes."""
    before, hooks = dict(dotted_items(config, numbered=False)), [*config.train.hooks, {"type": "MegatronHook"}]
    changed = copy.deepcopy(config)
    for name, value in dotted_items(change(changed) or changed, numbered=False):
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
    warmup = max(1, round(factor(0) ** (-2 / 3))) if factor(0) > 0 else 1
    noam = TrainConfig(schedule="noam", warmup_steps=warmup)
    steps = (n * warmup // 2 + more for n in (0, 1, 2, 3, 9, 10**8) for more in (0, 1))
    same = all(math.isclose(factor(step), learning_rate_factor(step, noam, 10**9), rel_tol=1e-6) for step in steps)
    return warmup if same else None
