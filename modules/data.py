"""Rows for training, validation and test, and the LightningDataModule that serves them as optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, Sampler

from .config import DataConfig
from .encoding import Documents, encode_rows
from .packing import StepBatch, count_steps, make_step, plan_steps, split_step
from .rows import DataError, RowSource, has_split, load_rows
from .tokenizer import Tokenizer


def load_splits(config: DataConfig, seed: int, source: RowSource | None = None) -> dict[str, datasets.Dataset]:
    """{"train": …, "validation": …, and "test" where there is one}; validated rows.

    source stands in for config.path where rows are already in memory, e.g. Dataset.from_dict({"src_txt": […]}).
    Validation rows come from validation_path, else from the source's own validation split, else from the
    training rows, drawn by seed. Raises DataError.
    """
    if source is None:
        source = config.path
    if source is None:
        raise DataError("no training rows: give data.path=FILE, folder or hub name (or data=NAME, see --help)")
    check_prepared(source)
    train = load_rows(source, config.columns, "train", config.max_rows)
    splits = {"train": train}
    for name, path in (("validation", config.validation_path), ("test", config.test_path)):
        if path:
            splits[name] = load_rows(path, config.columns, None, config.max_rows)
        elif has_split(source, name):
            splits[name] = load_rows(source, config.columns, name, config.max_rows)
    if "validation" not in splits:
        splits["train"], splits["validation"] = hold_out(train, config.validation_fraction, seed)
    return splits


def check_prepared(source: RowSource) -> None:
    """What conf/data/ names is made by a stage of ours: say which, where it hasn't run yet."""
    if isinstance(source, str) and Path(source).parts[:1] == ("prepared",) and not Path(source).exists():
        raise DataError(
            f"{source} isn't there yet: `python -m pipelines.prepare` makes prepared/sample, and with source=full "
            "prepared/full; or give rows of your own, data.path=FILE"
        )


def load_test_rows(config: DataConfig) -> datasets.Dataset:
    """The rows to evaluate on: test_path, else the test split beside the training rows."""
    check_prepared(config.test_path or config.path or "")
    if config.test_path:
        return load_rows(config.test_path, config.columns, None, config.max_rows)
    if config.path and has_split(config.path, "test"):
        return load_rows(config.path, config.columns, "test", config.max_rows)
    raise DataError(
        f"{config.path or 'data.path is unset'}: no test rows here; give data.test_path=FILE, or split your rows with "
        "python -m pipelines.prepare source=FILE"
    )


def hold_out(rows: datasets.Dataset, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(the rest, a share of the rows drawn by seed), both in the order of the rows; at least one row each."""
    count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    if count < 1 or not fraction:
        raise DataError(
            f"{len(rows)} rows and data.validation_fraction={fraction} leave none for validation: "
            "give more rows, a fraction above 0, or data.validation_path=FILE"
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(sorted(order[count:])), rows.select(sorted(order[:count]))


class Steps(Dataset[StepBatch]):
    """Item i is the i-th optimizer step of an epoch."""

    def __init__(self, documents: Documents, plan: Sequence[np.ndarray], micro_batch_tokens: int, **ranks: int):
        self.documents = documents
        self.plan = plan
        self.micro_batch_tokens = micro_batch_tokens
        self.ranks = ranks

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> StepBatch:
        return make_step(self.documents, self.plan[index], self.micro_batch_tokens, **self.ranks)


class TextDataModule(pl.LightningDataModule):
    """Serves steps: shuffled anew by (seed, epoch) for training, in order for validation."""

    def __init__(
        self,
        splits: dict[str, datasets.Dataset],
        tokenizer: Tokenizer,
        config: DataConfig,
        *,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        micro_batch_tokens: int = 4096,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.micro_batch_tokens = micro_batch_tokens
        self.seed = seed
        self.documents = {
            name: encode_rows(rows, tokenizer, config.sequence_length, config.over_long)
            for name, rows in splits.items()
            if name != "test"
        }

    @property
    def steps_per_epoch(self) -> int:
        return count_steps(self.documents["train"].lengths, self.batch_size, self.batch_tokens)

    def train_dataloader(self) -> DataLoader[StepBatch]:
        documents = self.documents["train"]
        epoch = self.trainer.current_epoch if self.trainer else 0
        order = np.random.default_rng((self.seed, epoch)).permutation(len(documents))
        plan = plan_steps(documents.lengths, order, self.batch_size, self.batch_tokens)
        return self.loader(Steps(documents, plan, self.micro_batch_tokens, **self.ranks()))

    def val_dataloader(self) -> DataLoader[StepBatch]:
        return self.loader(in_order(self.documents["validation"], self.micro_batch_tokens, **self.ranks()))

    def ranks(self) -> dict[str, int]:
        """This process's share of each step; devices that share each matrix take the same rows."""
        if not self.trainer:
            return {}
        shares = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        return {"rank": shares["rank"], "world_size": shares["num_replicas"]}

    def loader(self, steps: Steps) -> DataLoader[StepBatch]:
        return StepLoader(steps, batch_size=None, collate_fn=identity, sampler=Remaining(len(steps)))


class Remaining(Sampler[int]):
    """Steps of an epoch in order, from the first that isn't done yet."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0

    def __len__(self) -> int:
        return self.steps  # of the whole epoch: Lightning counts from where it resumes

    def __iter__(self) -> Iterator[int]:
        yield from range(self.done, self.steps)


class StepLoader(DataLoader[StepBatch]):
    """Lightning keeps its state in checkpoints: resumed in the middle of an epoch, it goes on with the next step."""

    given = 0

    def __iter__(self) -> Any:
        for step in super().__iter__():
            self.given += 1
            yield step

    def state_dict(self) -> dict[str, int]:
        return {"done": self.sampler.done + self.given}  # type: ignore[attr-defined]

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.done = state["done"]  # type: ignore[attr-defined]


def in_order(documents: Documents, max_tokens: int, **ranks: int) -> Steps:
    """All documents, sorted by length, one forward pass a step: for scoring, where the order doesn't matter."""
    plan = split_step(np.arange(len(documents)), documents.lengths, max_tokens)
    return Steps(documents, plan, max_tokens, **ranks)


def identity(step: Any) -> Any:
    """Steps are tensors already; the loader's default would rebuild them."""
    return step
