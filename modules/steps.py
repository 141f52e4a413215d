"""Optimizer steps by number, for a loader or a plain loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from .encoding import Documents
from .packing import StepBatch, make_step, plan_steps, split_step


class Steps(Dataset[StepBatch]):
    """Item i is made of the i-th group of documents in a plan."""

    def __init__(self, documents: Documents, plan: Sequence[np.ndarray], micro_batch_tokens: int, **ranks: int):
        self.documents = documents
        self.plan = plan
        self.micro_batch_tokens = micro_batch_tokens
        self.ranks = ranks

    def __len__(self) -> int:
        return len(self.plan)

    def chosen(self, index: int) -> np.ndarray:
        """Document numbers of a step."""
        return self.plan[index]

    def __getitem__(self, index: int) -> StepBatch:
        return make_step(self.documents, self.chosen(index), self.micro_batch_tokens, **self.ranks)


def in_order(documents: Documents, max_tokens: int, **ranks: int) -> Steps:
    """All documents, sorted by length, one forward pass a step: for scoring, where the order doesn't matter."""
    plan = split_step(np.arange(len(documents)), documents.lengths, max_tokens)
    return Steps(documents, plan, max_tokens, **ranks)


class ShuffledSteps(Steps):
    """Item i is the i-th optimizer step of all training: epoch after epoch, each shuffled by (seed, epoch).

    It depends on nothing else, so training goes on from any step as if it had never stopped, on any number of ranks.
    `plan` is of one epoch, that of the step asked for last.
    """

    def __init__(
        self,
        documents: Documents,
        batch_size: int | None,
        batch_tokens: int | None,
        seed: int,
        micro_batch_tokens: int,
        **ranks: int,
    ) -> None:
        super().__init__(documents, [], micro_batch_tokens, **ranks)
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.seed = seed
        self.begin()

    def begin(self) -> None:
        self.epoch, self.first = 0, 0
        self.plan = self.plan_epoch()

    def plan_epoch(self) -> list[np.ndarray]:
        """Document numbers of each of the epoch's steps."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.documents))
        return plan_steps(self.documents.lengths, order, self.batch_size, self.batch_tokens)

    def chosen(self, index: int) -> np.ndarray:
        """How many steps an epoch has depends on its order, so all before it are planned."""
        if index < self.first:
            self.begin()
        while index >= self.first + len(self.plan):
            self.first += len(self.plan)
            self.epoch += 1
            self.plan = self.plan_epoch()
        return self.plan[index - self.first]
