"""Optimizer steps of several sources, each of which has its share of the trained tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..encoding import Documents
from ..packing import Position, ShuffledSteps, StepBatch, plan_steps

SMALLEST_SHARE = 1e-9
"""Of the largest weight; a run of so many tokens takes one of that source."""


@dataclass(frozen=True)
class Mixture:
    """Sources by number, and which of the joined documents are whose."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    """Shares of the trained tokens; they add up to 1."""
    bounds: tuple[int, ...]
    """Documents bounds[i] to bounds[i + 1] are source i's."""
    epoch_tokens: int
    """Trained tokens of an epoch: with so many the source that is used up first has been read once."""

    def stream(self, source: int, seed: int, taken: int = 0) -> Iterator[np.ndarray]:
        """The source's documents after so many, pass after pass, each pass shuffled by seed and its number.

        As an epoch of that source alone is, and whatever its place among the sources: so a pass that has begun can be
        finished when sources come, go, or are listed in another order.
        """
        first, last = self.bounds[source : source + 2]
        number, left_out = divmod(taken, last - first)
        while True:
            yield first + np.random.default_rng((seed, number)).permutation(last - first)[left_out:]
            number, left_out = number + 1, 0

    def following(
        self, tokens: np.ndarray, seed: int, taken: Sequence[int], since: Sequence[int], count: int
    ) -> np.ndarray:
        """Documents that come next, until they have `count` tokens that are trained on.

        The next one is always of the source that lags most: whose tokens so far, divided by its weight, are fewest. So
        each source's documents, with this quotient as their time, are merged by time.

        Args:
            tokens: Of each document those that are trained on.
            taken: Documents of each source that came before, passes and all.
            since: Tokens of each source since weights began to count.
        """
        end = sum(since) + count  # when this is some document's time, enough have come
        times, documents = [], []
        for source, weight in enumerate(self.weights):
            total = since[source]
            for part in self.stream(source, seed, taken[source]):
                sums = total + np.cumsum(tokens[part])
                times.append(np.concatenate([[total], sums[:-1]]) / weight)
                documents.append(part)
                total = int(sums[-1])
                if total / weight > end:
                    break
        order = np.concatenate(documents)[np.argsort(np.concatenate(times), kind="stable")]
        return order[: int(np.searchsorted(np.cumsum(tokens[order]), count)) + 1]

    def counts(self, documents: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """How many of the documents are of each source, or the sum of these values of them; (sources,) int64."""
        sources = np.searchsorted(self.bounds, documents, "right") - 1
        found: np.ndarray = np.bincount(sources, values, len(self.names)).astype(np.int64)
        return found


def shares(tokens: Sequence[int], weights: Sequence[float | None], temperature: float) -> tuple[float, ...]:
    """Weights that add up to 1: those given, else tokens^(1/temperature).

    Raises ValueError where one is too small beside the others to be a share.
    """
    given = [
        (size / max(tokens)) ** (1 / temperature) if weight is None else weight
        for size, weight in zip(tokens, weights, strict=True)
    ]
    if min(given) < SMALLEST_SHARE * max(given):
        raise ValueError(
            f"data.mix: the smallest weight is {min(given):.3g}, the largest {max(given):.3g} (data.mix_temperature="
            f"{temperature:g}): leave out what is to be taken so little of, or give it more"
        )
    return tuple(float(weight / sum(given)) for weight in given)


class MixedSteps(ShuffledSteps):
    """As ShuffledSteps, of several sources. An epoch ends when the source that is used up first has been read once; the
    others go on in the next one where they were.
    """

    def __init__(
        self,
        documents: Documents,
        batch_size: int | None,
        batch_tokens: int | None,
        seed: int,
        micro_batch_tokens: int,
        start: Position,
        mixture: Mixture,
        **share: int,
    ) -> None:
        self.mixture = mixture
        super().__init__(documents, batch_size, batch_tokens, seed, micro_batch_tokens, start, **share)

    def begin(self) -> None:
        sources = len(self.mixture.names)
        self.before = np.array(self.start.taken or [0] * sources)
        """Documents of each source that were taken before this epoch, or before `start` in it."""
        self.since = np.zeros(sources, np.int64)
        """Trained tokens of each source from `start` to where this epoch begins."""
        self.order = self.trained = np.zeros(0, np.int64)
        """Documents of the epoch, and the tokens of each that are trained on."""
        super().begin()

    def plan_epoch(self) -> list[np.ndarray]:
        """Called for one epoch after the other, from `start` on."""
        if self.epoch != self.start.epoch:
            self.before += self.mixture.counts(self.order)
            self.since += self.mixture.counts(self.order, self.trained)
        self.begun = self.start.tokens if self.epoch == self.start.epoch else 0
        tokens = self.documents.trained_tokens
        left = self.mixture.epoch_tokens - self.begun
        self.order = self.mixture.following(tokens, self.seed, self.before.tolist(), self.since.tolist(), left)
        self.trained = tokens[self.order]
        plan = plan_steps(self.documents.lengths, self.order, self.batch_size, self.batch_tokens)
        self.taken = np.cumsum([len(step) for step in plan])
        return plan

    def place_after(self, index: int) -> Position:
        """How far training has come with the step that was asked for last."""
        done = int(self.taken[index - self.first])
        taken = (self.before + self.mixture.counts(self.order[:done])).tolist()
        if done == len(self.order):
            return Position(index + 1, self.epoch + 1, 0, tuple(taken))
        earlier = self.start.documents if self.epoch == self.start.epoch else 0
        tokens = self.begun + int(self.trained[:done].sum())
        return Position(index + 1, self.epoch, earlier + done, tuple(taken), tokens)

    def __getitem__(self, index: int) -> StepBatch:
        step = super(ShuffledSteps, self).__getitem__(index)
        place = self.place_after(index)
        return replace(step, place=place, epochs=place.epoch + place.tokens / self.mixture.epoch_tokens)
