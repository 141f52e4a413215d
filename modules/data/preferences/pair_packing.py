"""Pairs of documents as what steps are made of: a pair is always in one micro-batch, however a step is split.

So nothing of a pair has to wait for another pass, and a step's gradient is the same however it is split.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...config.preferences.preference import PreferenceConfig
from ..encoding import Documents
from ..packing import MicroBatch, collate, empty


@dataclass(frozen=True)
class Pairs(Documents):
    """Documents of which each two, the chosen one first, count as one wherever steps are planned."""

    reference: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    """Of each pair's answers the log-probabilities that the model has which training starts from, summed over tokens,
    (pairs, 2) float32. Empty where nothing asks for them."""
    whole_texts: bool = False
    """Whether labels of chosen documents begin with the prompt's, as ORPO learns them."""

    @classmethod
    def of(cls, documents: Documents, **more: Any) -> Pairs:
        return cls(**{entry.name: getattr(documents, entry.name) for entry in fields(Documents)}, **more)

    def __len__(self) -> int:
        return len(self.prompt_lengths) // 2

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Inputs of each pair, (pairs,) int64."""
        lengths: np.ndarray = self.document_lengths.reshape(-1, 2).sum(1)
        return lengths

    @functools.cached_property
    def trained_tokens(self) -> np.ndarray:
        """Tokens of each pair's answers, (pairs,) int64."""
        trained: np.ndarray = (self.document_lengths + 1 - self.prompt_lengths).reshape(-1, 2).sum(1)
        return trained

    @functools.cached_property
    def document_lengths(self) -> np.ndarray:
        """Inputs of each document, (documents,) int64."""
        lengths: np.ndarray = np.diff(self.offsets) - 1
        return lengths

    def lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        lengths: np.ndarray = self.document_lengths.reshape(-1, 2)[numbers].ravel()
        return lengths

    def ids_of(self, number: int) -> np.ndarray:
        return super().ids_of(2 * number)

    @functools.cached_property
    def singly(self) -> Documents:
        """The same documents one by one."""
        single = Documents(**{entry.name: getattr(self, entry.name) for entry in fields(Documents)})
        if not self.whole_texts:
            return single
        chosen = np.arange(len(self.prompt_lengths)) % 2 == 0
        return replace(single, prompt_lengths=np.where(chosen, 1, self.prompt_lengths))


def pairs_of(documents: Mapping[str, Documents], config: PreferenceConfig) -> dict[str, Documents]:
    """The documents of each split two by two, labelled as the loss wants them."""
    return {name: Pairs.of(each, whole_texts=config.loss == "orpo") for name, each in documents.items()}


@dataclass
class PairBatch(MicroBatch):
    """Pairs whose documents lie by length, as those of any micro-batch do; `documents` are the pairs' numbers."""

    document_of: Tensor
    """(trained_tokens,) int64: which of the documents each label that is trained on is in."""
    in_answer: Tensor
    """(trained_tokens,) bool: whether that label is the answer's, and not the prompt's."""
    sides: Tensor
    """(2, pairs) int64: which document is each pair's chosen one, and which its rejected one."""
    reference: Tensor
    """(2, pairs) float32, as in Pairs; zeros where there is none."""
    chosen_tokens: int
    """Labels of chosen documents that are trained on."""

    @property
    def pairs(self) -> int:
        return self.sides.shape[1]


@collate.register
def collate_pairs(documents: Pairs, chosen: np.ndarray, multiple: int = 1) -> PairBatch:
    """chosen: numbers of pairs."""
    single, numbers = documents.singly, np.stack([2 * chosen, 2 * chosen + 1])
    order = np.argsort(documents.document_lengths[numbers.ravel()], kind="stable")
    laid = numbers.ravel()[order]
    batch = collate(single, laid, multiple)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    counts = single.trained_tokens[laid]
    answers = documents.document_lengths[laid] + 1 - documents.prompt_lengths[laid]
    found = documents.reference[chosen] if len(documents.reference) else np.zeros((len(chosen), 2), np.float32)
    return PairBatch(
        **dict(entries(batch)) | {"documents": chosen},
        document_of=torch.from_numpy(np.arange(len(laid)).repeat(counts)),
        in_answer=torch.from_numpy(np.concatenate(list(map(is_last, counts, answers)))),
        sides=torch.from_numpy(place.reshape(numbers.shape)),
        reference=torch.from_numpy(found.T.copy()),
        chosen_tokens=int(single.trained_tokens[numbers[0]].sum()),
    )


def is_last(count: int, last: int) -> np.ndarray:
    """Whether each of so many is among the last ones, (count,) bool."""
    return np.arange(count) >= count - last


@empty.register
def empty_pairs(documents: Pairs) -> PairBatch:
    nothing = torch.empty(0, dtype=torch.int64)
    return PairBatch(
        **dict(entries(empty(documents.singly))),
        document_of=nothing,
        in_answer=nothing.bool(),
        sides=nothing.reshape(2, 0),
        reference=torch.empty(2, 0),
        chosen_tokens=0,
    )


def entries(batch: MicroBatch) -> Iterator[tuple[str, Any]]:
    return ((entry.name, getattr(batch, entry.name)) for entry in fields(MicroBatch))
