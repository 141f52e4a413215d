"""Documents → optimizer steps → micro-batches without padding. Pure functions on numpy arrays, and the steps by number.

A micro-batch lays documents end to end: one row of N tokens, plus the documents' lengths. Attention works on each
document alone (model/decoder.py), so there is nothing to pad and nothing to mask. Documents are sorted by length within
a step: neighbours of equal length then share one attention call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..model.attention import Layout
from ..model.loss import IGNORED
from .encoding import Documents


@dataclass
class MicroBatch:
    """What one forward pass takes."""

    input_ids: Tensor
    """(1, N) int64"""
    labels: Tensor
    """(1, N) int64, the id that follows each input; IGNORED inside prompts"""
    layout: Layout
    """Of the documents, and of padding that isn't trained on after them."""
    trained: Tensor
    """(trained_tokens,) int64: which labels aren't IGNORED."""
    trained_tokens: int
    characters: int
    """Characters that those labels spell."""
    ends: int
    """End-of-texts among them."""
    lost_bytes: int
    """Of characters that they should spell and don't."""
    documents: np.ndarray
    """Numbers of the documents; empty where there is but the token of `empty`."""


class Position(NamedTuple):
    """How far training has come in its rows: after `step` steps."""

    step: int = 0
    epoch: int = 0
    """Whole epochs."""
    documents: int = 0
    """Of the next epoch, in its order."""
    taken: tuple[int, ...] = ()
    """Of a mixture: documents of each source, in all its passes."""
    tokens: int = 0
    """Of a mixture: trained tokens of the next epoch."""


BEGINNING = Position()


@dataclass
class StepBatch:
    """What one optimizer step takes, on this rank."""

    micro_batches: list[MicroBatch]
    trained_tokens: int
    """Of the whole step, over all micro-batches and ranks: what its loss is divided by."""
    place: Position = BEGINNING
    """How far training has come with it."""
    epochs: float = 0.0
    """The same, as passes over the rows."""


def plan_steps(
    lengths: np.ndarray, order: np.ndarray, batch_size: int | None, batch_tokens: int | None
) -> list[np.ndarray]:
    """Document indices of each optimizer step, in the given order; the last step takes what is left.

    Exactly one of batch_size (documents a step) and batch_tokens (inputs a step, met on average) is given.
    """
    if batch_size:
        return np.split(order, range(batch_size, len(order), batch_size))
    assert batch_tokens
    step = (lengths[order].cumsum() - 1) // batch_tokens
    return np.split(order, np.flatnonzero(np.diff(step)) + 1)


def count_steps(lengths: np.ndarray, batch_size: int | None, batch_tokens: int | None) -> int:
    """Steps an epoch (with batch_tokens: in file order; a shuffle may differ where documents are longer than it)."""
    return len(plan_steps(lengths, np.arange(len(lengths)), batch_size, batch_tokens))


def split_step(documents: np.ndarray, lengths: np.ndarray, micro_batch_tokens: int) -> list[np.ndarray]:
    """A step's documents, sorted by length, in groups of at most micro_batch_tokens (or one document).

    As few groups as that takes, and alike in size: a small left-over group would waste a pass.
    """
    ordered = documents[np.argsort(lengths[documents], kind="stable")]
    all_tokens = int(lengths[ordered].sum())
    count = max(1, -(-all_tokens // micro_batch_tokens))
    groups: list[np.ndarray] = []
    start = total = 0
    for position, length in enumerate(lengths[ordered]):
        full = total + length > micro_batch_tokens
        fair = total + length / 2 > all_tokens / count and len(groups) < count - 1
        if total and (full or fair):
            groups.append(ordered[start:position])
            start, total = position, 0
        total += length
    return [*groups, ordered[start:]] if len(ordered) else []


def collate(documents: Documents, chosen: np.ndarray, multiple: int = 1) -> MicroBatch:
    """Lays the chosen documents end to end, and fills up to a multiple of tokens with documents of zeros."""
    inputs, labels = [], []
    for index in chosen:
        ids = documents.ids[documents.offsets[index] : documents.offsets[index + 1]].astype(np.int64)
        following = ids[1:].copy()
        following[: documents.prompt_lengths[index] - 1] = IGNORED
        for begin, end in documents.later_prompts_of(index):
            following[begin - 1 : end - 1] = IGNORED
        inputs.append(ids[:-1])
        labels.append(following)
    lengths = documents.lengths[chosen]
    full, rest = divmod(-int(lengths.sum()) % multiple, int(lengths.max()))  # none is longer than a real one
    padding = np.array([lengths.max()] * full + [rest] * (rest > 0), np.int64)
    inputs.append(np.zeros(padding.sum(), np.int64))
    labels.append(np.full(padding.sum(), IGNORED))
    flat_labels = np.concatenate(labels)
    return MicroBatch(
        input_ids=torch.from_numpy(np.concatenate(inputs))[None],
        labels=torch.from_numpy(flat_labels)[None],
        layout=Layout.of([*lengths, *padding]),
        trained=torch.from_numpy(np.flatnonzero(flat_labels != IGNORED)),
        trained_tokens=int(documents.trained_tokens[chosen].sum()),
        characters=int(documents.characters[chosen].sum()),
        ends=int(documents.ended[chosen].sum()),
        lost_bytes=int(documents.lost_bytes[chosen].sum()),
        documents=chosen,
    )


def make_step(
    documents: Documents,
    chosen: np.ndarray,
    micro_batch_tokens: int,
    rank: int = 0,
    world_size: int = 1,
    multiple: int = 1,
) -> StepBatch:
    """An optimizer step's share of one rank: every world_size-th document by length, so that shares are alike.

    All ranks get as many micro-batches, as those that work on one together have to: who has fewer gets empty ones.
    """
    lengths = documents.lengths
    ordered = chosen[np.argsort(lengths[chosen], kind="stable")]
    shares = [split_step(ordered[r::world_size], lengths, micro_batch_tokens) for r in range(world_size)]
    micro_batches = [collate(documents, group, multiple) for group in shares[rank]]
    micro_batches += [empty(documents)] * (max(map(len, shares)) - len(micro_batches))
    return StepBatch(micro_batches, trained_tokens=int(documents.trained_tokens[chosen].sum()))


def empty(documents: Documents) -> MicroBatch:
    """One token that isn't trained on: what a rank without documents passes through the model beside the others."""
    ids, nothing = torch.from_numpy(documents.ids[:1].astype(np.int64))[None], np.empty(0, np.int64)
    return MicroBatch(
        input_ids=ids,
        labels=torch.full((1, 1), IGNORED),
        layout=Layout.of([1]),
        trained=torch.empty(0, dtype=torch.int64),
        trained_tokens=0,
        characters=0,
        ends=0,
        lost_bytes=0,
        documents=nothing,
    )


class StepDataset(Dataset[StepBatch]):
    """Item i is made of the i-th group of documents in a plan."""

    def __init__(self, documents: Documents, plan: Sequence[np.ndarray], micro_batch_tokens: int, **share: int):
        self.documents, self.plan = documents, plan
        self.micro_batch_tokens, self.share = micro_batch_tokens, share

    def __len__(self) -> int:
        return len(self.plan)

    def chosen(self, index: int) -> np.ndarray:
        """Document numbers of a step."""
        return self.plan[index]

    def __getitem__(self, index: int) -> StepBatch:
        return make_step(self.documents, self.chosen(index), self.micro_batch_tokens, **self.share)


def in_order(documents: Documents, max_tokens: int, bounds: Sequence[int] = (), **share: int) -> StepDataset:
    """All documents, sorted by length, one forward pass a step: for scoring, where the order doesn't matter.

    bounds: where each source's documents begin, and all end; no pass has some of two sources.
    """
    ends = pairwise(bounds or (0, len(documents)))
    plan = [
        group for first, last in ends for group in split_step(np.arange(first, last), documents.lengths, max_tokens)
    ]
    return StepDataset(documents, plan, max_tokens, **share)


class ShuffledSteps(StepDataset):
    """Item i is the i-th optimizer step of all training: epoch after epoch, each shuffled by (seed, epoch).

    It depends on nothing else, so training goes on from any step as if it had never stopped, on any number of ranks.
    Steps begin at `start`: what came before may have had another batch size. `plan` is of one epoch, that of the step
    asked for last, or of what `start` left of it.
    """

    def __init__(
        self,
        documents: Documents,
        batch_size: int | None,
        batch_tokens: int | None,
        seed: int,
        micro_batch_tokens: int,
        start: Position = BEGINNING,
        **share: int,
    ) -> None:
        super().__init__(documents, [], micro_batch_tokens, **share)
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.seed, self.start = seed, start
        self.begin()

    def begin(self) -> None:
        self.first, self.epoch, *_ = self.start
        self.plan = self.plan_epoch()

    def plan_epoch(self) -> list[np.ndarray]:
        """Document numbers of each of the epoch's steps."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.documents))
        left = order[self.start.documents :] if self.epoch == self.start.epoch else order
        plan = plan_steps(self.documents.lengths, left, self.batch_size, self.batch_tokens)
        self.taken = len(order) - len(left) + np.cumsum([len(step) for step in plan])
        return plan

    def chosen(self, index: int) -> np.ndarray:
        """How many steps an epoch has depends on its order, so all before it are planned."""
        if index < self.first:
            self.begin()
        while index >= self.first + len(self.plan):
            self.first += len(self.plan)
            self.epoch += 1
            self.plan = self.plan_epoch()
        return self.plan[index - self.first]

    def __getitem__(self, index: int) -> StepBatch:
        step = super().__getitem__(index)
        taken = int(self.taken[index - self.first])
        epochs, documents = divmod(taken, len(self.documents))
        place = Position(index + 1, self.epoch + epochs, documents)
        return replace(step, place=place, epochs=self.epoch + taken / len(self.documents))
