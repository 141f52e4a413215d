"""The LightningDataModule that serves encoded rows as optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from ..config.data import DataConfig
from ..system.cache import cache_folder
from ..tokenizer.tokenizer import Tokenizer
from .arrow import fingerprint
from .encoding import Documents, stored_documents
from .mixing.joined_documents import join
from .mixing.mixed_steps import MixedSteps, Mixture, shares
from .mixing.restart import mixed_start
from .mixing.source_splits import part_of, split_name
from .packing import BEGINNING, MicroBatch, Position, ShuffledSteps, StepBatch, StepDataset, count_steps, in_order
from .prefetching import Prefetched

Loader = DataLoader[StepBatch] | Prefetched

GPU_MULTIPLE = 256
"""What a pass's tokens are filled up to a multiple of on a GPU: kernels, and compiled code, take few shapes well."""


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
        micro_batch_tokens: int = 2048,
        seed: int = 0,
        tokenizers: Mapping[str, Tokenizer] | None = None,
    ) -> None:
        """splits: of a mixture by `split_name`; tokenizers: by source, each with its prompt template."""
        super().__init__()
        self.batch_size, self.batch_tokens, self.micro_batch_tokens = batch_size, batch_tokens, micro_batch_tokens
        self.seed, self.tokenizer = seed, tokenizer
        assert config.sequence_length, "the recipe sets it where it isn't given"
        assert config.over_long, "the recipe sets it where it isn't given"
        how = config.sequence_length, config.over_long, cache_folder(config.cache_dir)
        self.start = BEGINNING
        """Where the batch size that there is now began to count."""
        self.documents: dict[str, Documents] = {}
        """Split → the documents of all sources, one after the other."""
        self.bounds: dict[str, tuple[int, ...]] = {}
        """Split → where each source's documents begin, and all end."""
        self.tokenizers = tokenizers or dict.fromkeys(config.sources, tokenizer)
        self.parts = {
            name: stored_documents(rows, self.tokenizers[part_of(name)[1]], *how)
            for name, rows in splits.items()
            if part_of(name)[0] != "test"
        }
        """The same source by source, by `split_name`."""
        for split in dict.fromkeys(part_of(name)[0] for name in self.parts):
            found = [documents for name, documents in self.parts.items() if part_of(name)[0] == split]
            self.documents[split] = join(found)
            self.bounds[split] = tuple(np.cumsum([0, *map(len, found)]).tolist())
        self.rows = ",".join(fingerprint(rows) for name, rows in splits.items() if part_of(name)[0] == "train")
        self.mixture: Mixture | None = self.mixed(config) if config.mix else None

    def setup(self, stage: str) -> None:
        """Ranks whose GPUs have other amounts of memory free still split steps alike: as the one with the least."""
        if dist.is_initialized() and self.trainer:
            least = torch.tensor(self.micro_batch_tokens, device=self.trainer.strategy.root_device)
            dist.all_reduce(least, dist.ReduceOp.MIN)
            self.micro_batch_tokens = int(least)

    def mixed(self, config: DataConfig) -> Mixture:
        weights = [source.weight for source in config.mix]
        tokens = self.tokens_of_sources
        found = shares(tokens, weights, config.mix_temperature)
        length = math.ceil(min(size / weight for size, weight in zip(tokens, found, strict=True)) - 1e-6)
        return Mixture(tuple(config.sources), found, self.bounds["train"], length)

    @property
    def trained_an_epoch(self) -> int:
        """Trained tokens of an epoch."""
        return self.mixture.epoch_tokens if self.mixture else sum(self.tokens_of_sources)

    @cached_property
    def tokens_of_sources(self) -> list[int]:
        """Trained tokens that each source has once."""
        sums = np.concatenate([[0], self.documents["train"].trained_tokens.cumsum()])
        return np.diff(sums[list(self.bounds["train"])]).tolist()  # type: ignore[no-any-return]

    @cached_property
    def first_epoch(self) -> ShuffledSteps:
        """Steps from the beginning, at whose first epoch the plan looks."""
        return self.shuffled_from(BEGINNING)

    @property
    def read_an_epoch(self) -> int:
        """Tokens of an epoch, prompts and all."""
        lengths = self.documents["train"].lengths
        return int((lengths[np.concatenate(self.first_epoch.plan)] if self.mixture else lengths).sum())

    @property
    def steps_per_epoch(self) -> int:
        """Of a mixture those of the first one: others have a few documents more or fewer."""
        if self.mixture:
            return len(self.first_epoch.plan)
        return count_steps(self.documents["train"].lengths, self.batch_size, self.batch_tokens)

    def steps_until(self, epochs: int) -> int:
        """Steps that training has taken after so many epochs."""
        step, epoch, documents, *_ = self.start
        if documents and epochs > epoch:
            step, epoch = self.first_epoch_end, epoch + 1
        return step + max(0, epochs - epoch) * self.steps_per_epoch

    @property
    def first_epoch_end(self) -> int:
        """The step that ends the epoch which `start` is in."""
        return self.start.step + (len(self.shuffled().plan) if self.start.documents else self.steps_per_epoch)

    def epochs_after(self, step: int) -> float:
        begin, epoch, documents, *_ = self.start
        if documents:  # what is left of that epoch may take more or fewer steps than its share of a whole one
            rest = self.first_epoch_end - begin
            if step < begin + rest:
                share = self.start.tokens / self.trained_an_epoch or documents / len(self.documents["train"])
                return epoch + share + (1 - share) * (step - begin) / rest
            begin, epoch = begin + rest, epoch + 1
        return epoch + (step - begin) / self.steps_per_epoch

    def progress(self, place: Position) -> dict[str, Any]:
        """What a checkpoint must say for training to go on from it, in another batch size too; plain data."""
        return {"place": place._asdict(), "start": self.start._asdict(), "counted": self.counted()}

    def counted(self) -> dict[str, Any]:
        """What decides which rows a step takes."""
        documents = self.documents["train"]
        order = {"rows": self.rows, "seed": self.seed, "documents": len(documents)}
        batch = {"batch_size": self.batch_size, "batch_tokens": self.batch_tokens}
        found = order | batch | {"tokens": int(documents.lengths.sum())}
        if mixture := self.mixture:
            found["mix"] = {"weights": list(mixture.weights), "documents": np.diff(mixture.bounds).tolist()}
        return found

    def go_on(self, progress: dict[str, Any]) -> None:
        """Goes on from a checkpoint: steps are counted as they were, or else from its place in the rows.

        Each row of the epoch still comes once; with other rows the epoch begins again. ValueError where it can't be.
        """
        place, before, now = Position(**progress["place"]), progress["counted"], self.counted()
        if before == now:
            self.start = Position(**progress["start"])
        elif "mix" in before or "mix" in now:
            self.start = mixed_start(place, before, now)
        elif before["rows"] != now["rows"]:
            self.start = place._replace(documents=0)
        else:
            changed = [name for name in ("seed", "documents") if before[name] != now[name]]
            if place.documents and changed:
                raise ValueError(cannot_finish(place, before, now, changed))
            self.start = place

    def where_sources_are(self, place: Position) -> dict[str, str]:
        """Source of a mixture → how far training has come in its rows."""
        found = {}
        for name, count in zip(self.mixture.names if self.mixture else (), place.taken, strict=False):
            passes, rest = divmod(count, documents := len(self.parts[split_name("train", name)]))
            found[name] = f"after {rest:,} of {documents:,} documents in pass {passes + 1}"
        return found

    def train_dataloader(self) -> Loader:
        """The steps that are left of training; outside a trainer those of the first epoch."""
        steps = self.shuffled()
        left = range(self.trainer.global_step, self.trainer.max_steps) if self.trainer else range(len(steps.plan))
        return self.loader(steps, left)

    def shuffled(self) -> ShuffledSteps:
        return self.shuffled_from(self.start)

    def shuffled_from(self, start: Position) -> ShuffledSteps:
        documents, plan = self.documents["train"], (self.batch_size, self.batch_tokens, self.seed)
        if self.mixture:
            return MixedSteps(documents, *plan, self.micro_batch_tokens, start, self.mixture, **self.share())
        return ShuffledSteps(documents, *plan, self.micro_batch_tokens, start=start, **self.share())

    def val_dataloader(self) -> Loader:
        bounds = self.bounds["validation"]
        steps = in_order(self.documents["validation"], self.micro_batch_tokens, bounds, **self.share())
        return self.loader(steps, range(len(steps)))

    def validated_source(self, batch: MicroBatch) -> int:
        """Whose validation rows a pass is of; one without any counts nowhere."""
        return (
            int(np.searchsorted(self.bounds["validation"], batch.documents[:1], "right").sum() - 1)
            if len(batch.documents)
            else 0
        )

    def loader(self, steps: StepDataset, numbers: range) -> Loader:
        loader = DataLoader(steps, batch_size=None, sampler=numbers)
        return Prefetched(loader) if self.on_gpu else loader

    def beginning(self, document: int, characters: int = 20) -> str:
        """Of a training document's text, to find its row by."""
        ids = self.documents["train"].ids_of(document)[: 3 * characters]
        text = self.tokenizer.decode(ids.tolist()).replace("\n", " ")
        return text[:characters] + "…" * (len(text) > characters)

    def share(self) -> dict[str, int]:
        """Which part of each step is this process's; devices that share each matrix take the same rows."""
        if not self.trainer:
            return {}
        shares = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        multiple = GPU_MULTIPLE if self.on_gpu else 1
        return {"rank": shares["rank"], "world_size": shares["num_replicas"], "multiple": multiple}

    @property
    def on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def cannot_finish(place: Position, before: dict[str, Any], now: dict[str, Any], changed: list[str]) -> str:
    why = {
        "seed": f"seed was {before['seed']}, and is {now['seed']}",
        "documents": f"the same rows made {before['documents']:,} documents, and make {now['documents']:,} "
        "(data.sequence_length, data.over_long)",
    }
    return (
        f"the checkpoint of step {place.step} stands in the middle of an epoch, after {place.documents:,} of "
        f"{before['documents']:,} documents, and the rest of it can't be told from what was trained on: "
        f"{'; '.join(why[name] for name in changed)}. Give what was given then, or go on from a checkpoint at the end "
        "of an epoch"
    )
