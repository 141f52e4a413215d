"""Optimizer steps by number, for a loader or a plain loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from .encoding import Documents
from .packing import StepBatch, make_step, split_step


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


def in_order(documents: Documents, max_tokens: int, **ranks: int) -> Steps:
    """All documents, sorted by length, one forward pass a step: for scoring, where the order doesn't matter."""
    plan = split_step(np.arange(len(documents)), documents.lengths, max_tokens)
    return Steps(documents, plan, max_tokens, **ranks)
