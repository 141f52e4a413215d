"""A mixture's steps: each source has its share of the trained tokens, and each of its rows comes once a pass."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pytest

from modules.config.data import DataConfig
from modules.config.mixing.mixture_sources import SourceConfig
from modules.data.datamodule import TextDataModule
from modules.data.mixing.mixed_steps import MixedSteps, shares
from modules.data.packing import BEGINNING, Position
from modules.tokenizer.tokenizer import Tokenizer

SIZES = {"a": (200, 3, 30), "b": (120, 10, 60), "c": (17, 2, 9)}
"""Source → rows, and from how many to how many characters."""


def texts(count: int, shortest: int, longest: int) -> datasets.Dataset:
    random = np.random.default_rng((count, shortest))
    lengths = random.integers(shortest, longest, count)
    return datasets.Dataset.from_dict({"src_txt": ["".join(random.choice(list("山水春风花月"), n)) for n in lengths]})


def mixture(
    tokenizer: Tokenizer, *weights: float | None, sizes: dict[str, tuple[int, int, int]] = SIZES, **how: Any
) -> TextDataModule:
    mix = [SourceConfig(path=name, weight=weight) for name, weight in zip(sizes, weights, strict=True)]
    splits = {f"{split}/{name}": texts(*size) for split in ("train", "validation") for name, size in sizes.items()}
    config = DataConfig(mix=mix, mix_temperature=how.pop("temperature", 1.0))
    return TextDataModule(splits, tokenizer, config, **{"batch_size": 8, "seed": 3} | how)


def documents_of(data: TextDataModule, first: int, last: int) -> np.ndarray:
    steps = data.shuffled()
    return np.concatenate([steps.chosen(step) for step in range(first, last)])


def require_whole_passes(data: TextDataModule, taken: np.ndarray) -> None:
    """Of each source no document comes again, or is left out, within a pass."""
    for first, last in pairwise(data.bounds["train"]):
        own = taken[(taken >= first) & (taken < last)]
        for begin in range(0, len(own), last - first):
            one = own[begin : begin + last - first].tolist()
            assert len(set(one)) == len(one)
            assert len(one) == last - first or begin + len(one) == len(own)


def shares_of(data: TextDataModule, taken: np.ndarray) -> np.ndarray:
    assert data.mixture
    tokens = data.mixture.counts(taken, data.documents["train"].trained_tokens[taken])
    return np.asarray(tokens / tokens.sum())


@pytest.mark.parametrize("how", [{}, {"batch_size": None, "batch_tokens": 300}])
def test_weights_are_shares_of_trained_tokens_at_every_moment(tokenizer: Tokenizer, how: dict[str, Any]) -> None:
    """Never further from its share than a document of each source is long."""
    weights = np.array([0.6, 0.3, 0.1])
    data = mixture(tokenizer, 6, 3, 1, **how)
    taken = documents_of(data, 0, 5 * data.steps_per_epoch)
    trained = data.documents["train"].trained_tokens[taken]
    sources = np.searchsorted(data.bounds["train"], taken, "right") - 1
    so_far = np.stack([np.cumsum(np.where(sources == source, trained, 0)) for source in range(3)], axis=1)
    off = np.abs(so_far - np.cumsum(trained)[:, None] * weights)
    assert off.max() <= data.documents["train"].trained_tokens.max()
    require_whole_passes(data, taken)
    assert {len(np.unique(taken[sources == source])) for source in range(3)} == {17, *np.bincount(sources)[:2]}


def test_one_source_alone_is_trained_on_as_without_a_mixture(tokenizer: Tokenizer) -> None:
    sizes = {"a": SIZES["a"]}
    mixed = mixture(tokenizer, 0.5, sizes=sizes)
    rows = texts(*SIZES["a"])
    plain = TextDataModule({"train": rows, "validation": rows}, tokenizer, DataConfig(), batch_size=8, seed=3)
    assert mixed.steps_per_epoch == plain.steps_per_epoch
    steps, others = mixed.shuffled(), plain.shuffled()
    assert isinstance(steps, MixedSteps)
    assert not isinstance(others, MixedSteps)
    for number in range(3 * plain.steps_per_epoch):
        assert steps.chosen(number).tolist() == others.chosen(number).tolist()
        assert (steps[number].place.epoch, steps[number].place.documents) == others[number].place[1:3]


def test_an_epoch_ends_when_a_source_is_used_up(tokenizer: Tokenizer) -> None:
    data = mixture(tokenizer, 0.25, 0.5, 0.25)  # c has the fewest tokens for its weight
    place = data.shuffled()[data.steps_per_epoch - 1].place
    assert place[:3] == (data.steps_per_epoch, 1, 0)
    assert data.trained_an_epoch == 4 * data.tokens_of_sources[2]
    assert 17 - place.taken[2] <= 3  # those of another source that came last are long
    by_size = mixture(tokenizer, None, None, None)
    assert by_size.shuffled()[by_size.steps_per_epoch - 1].place.taken == (200, 120, 17)
    assert by_size.trained_an_epoch == sum(by_size.tokens_of_sources)


def test_any_step_can_be_asked_for_at_first(tokenizer: Tokenizer) -> None:
    data = mixture(tokenizer, 0.5, 0.4, 0.1)
    in_order = [data.shuffled().chosen(step).tolist() for step in range(40)]
    steps = data.shuffled()
    assert [steps.chosen(step).tolist() for step in (39, 3, 17)] == [in_order[step] for step in (39, 3, 17)]


def test_every_rank_counts_alike(tokenizer: Tokenizer) -> None:
    """Shares of a step are cut from the same documents, whichever source they are of."""
    data = mixture(tokenizer, 0.5, 0.4, 0.1)
    whole = data.shuffled()
    for rank in range(3):
        steps = MixedSteps(data.documents["train"], 8, None, 3, 2048, BEGINNING, data.mixture, rank=rank, world_size=3)
        assert [steps[n].place for n in range(20)] == [whole[n].place for n in range(20)]
        own = [int(n) for batch in steps[5].micro_batches for n in batch.documents]
        assert sorted(own) == sorted(set(own) & set(whole.chosen(5).tolist()))


def go_on(data: TextDataModule, before: TextDataModule, step: int) -> Position:
    """`data` goes on from a checkpoint of `before`."""
    place = before.shuffled()[step - 1].place
    progress = {"place": place._asdict(), "start": before.start._asdict(), "counted": before.counted()}
    data.go_on(progress)
    return place


def test_an_unchanged_run_takes_the_same_steps(tokenizer: Tokenizer) -> None:
    before, after = mixture(tokenizer, 0.5, 0.4, 0.1), mixture(tokenizer, 0.5, 0.4, 0.1)
    go_on(after, before, 13)
    assert after.start == BEGINNING
    assert documents_of(after, 13, 60).tolist() == documents_of(before, 13, 60).tolist()


@pytest.mark.parametrize(
    "how", [{"batch_size": 3}, {"batch_size": None, "batch_tokens": 100}, {"weights": (0.1, 0.1, 0.8)}]
)
def test_a_changed_run_goes_on_in_each_source(tokenizer: Tokenizer, how: dict[str, Any]) -> None:
    before = mixture(tokenizer, 0.5, 0.4, 0.1)
    weights = how.pop("weights", (0.5, 0.4, 0.1))
    after = mixture(tokenizer, *weights, **how)
    place = go_on(after, before, 13)
    assert after.start.taken == place.taken
    rest = documents_of(after, 13, 200)
    require_whole_passes(after, np.concatenate([documents_of(before, 0, 13), rest]))
    assert shares_of(after, rest) == pytest.approx(weights, abs=0.01)
    step = after.shuffled()[13]
    assert step.epochs > place.epoch
    assert after.epochs_after(14) == pytest.approx(step.epochs, abs=0.3)


def test_a_source_that_is_new_begins_at_its_beginning(tokenizer: Tokenizer) -> None:
    before = mixture(tokenizer, 0.5, 0.5, sizes={name: SIZES[name] for name in "ab"})
    after = mixture(tokenizer, 0.2, 0.3, 0.5, sizes={name: SIZES[name] for name in "bca"})
    place = go_on(after, before, 7)
    assert after.start == Position(7, place.epoch, 0, (place.taken[1], 0, place.taken[0]))


def own_numbers(data: TextDataModule, name: str, taken: np.ndarray) -> np.ndarray:
    """Of a source's documents among these, the first one being 0."""
    assert data.mixture
    source = data.mixture.names.index(name)
    first, last = data.mixture.bounds[source : source + 2]
    return taken[(taken >= first) & (taken < last)] - first


@pytest.mark.parametrize("names", ["ba", "cab", "bca", "b"])
def test_a_pass_that_has_begun_is_finished_wherever_its_source_is_listed(tokenizer: Tokenizer, names: str) -> None:
    before = mixture(tokenizer, 0.5, 0.5, sizes={name: SIZES[name] for name in "ab"})
    after = mixture(tokenizer, *[1.0] * len(names), sizes={name: SIZES[name] for name in names})
    go_on(after, before, 13)
    for name in set(names) & set("ab"):
        taken = [
            own_numbers(data, name, documents_of(data, *steps))
            for data, steps in ((before, (0, 13)), (after, (13, 200)))
        ]
        one_pass = np.concatenate(taken)[: SIZES[name][0]]
        assert len(taken[0])
        assert len(np.unique(one_pass)) == SIZES[name][0]


def test_a_mixture_goes_on_with_the_only_source_before(tokenizer: Tokenizer) -> None:
    rows = texts(*SIZES["a"])
    before = TextDataModule({"train": rows, "validation": rows}, tokenizer, DataConfig(), batch_size=8, seed=3)
    after = mixture(tokenizer, 0.5, 0.4, 0.1)
    go_on(after, before, 30)
    assert after.start.taken == (240, 0, 0)  # 25 steps are an epoch of 200 rows
    one = TextDataModule({"train": rows, "validation": rows}, tokenizer, DataConfig(), batch_size=8, seed=3)
    assert go_on(one, after, 31)
    assert one.start.taken == ()
    assert one.start.documents == 0


def test_a_pass_that_can_not_be_finished_is_refused(tokenizer: Tokenizer) -> None:
    before, after = mixture(tokenizer, 0.5, 0.4, 0.1), mixture(tokenizer, 0.5, 0.4, 0.1, seed=4)
    with pytest.raises(ValueError, match=r"step 13 stands in the middle of a source's rows \(of \d+ of its 200 docum"):
        go_on(after, before, 13)


def test_shares() -> None:
    assert shares([100, 300], [7, 3], 1.0) == (0.7, 0.3)
    assert shares([100, 300], [None, None], 1.0) == (0.25, 0.75)
    assert shares([100, 400], [None, None], 2.0) == pytest.approx((1 / 3, 2 / 3))
    assert shares([10**9, 10**9], [None, None], 1e-3) == (0.5, 0.5)  # 10^9000 is no number
    for tokens, weights, temperature in (([100, 400], [None, None], 1e-3), ([1, 1], [1e-300, 1.0], 1.0)):
        with pytest.raises(ValueError, match=r"data\.mix: the smallest weight is .*leave out what is to be taken so"):
            shares(tokens, weights, temperature)


def test_passes_of_validation_are_of_one_source(tokenizer: Tokenizer) -> None:
    data = mixture(tokenizer, 0.5, 0.4, 0.1)
    found = np.zeros(3, np.int64)
    for step in data.val_dataloader():
        (batch,) = step.micro_batches
        source = data.validated_source(batch)
        first, last = data.bounds["validation"][source : source + 2]
        assert ((batch.documents >= first) & (batch.documents < last)).all()
        found[source] += len(batch.documents)
    assert found.tolist() == [200, 120, 17]


def test_joined_documents_are_those_of_the_sources(tokenizer: Tokenizer) -> None:
    data = mixture(tokenizer, 0.5, 0.4, 0.1)
    joined, parts = data.documents["train"], [data.parts[f"train/{name}"] for name in "abc"]
    number = 0
    for part in parts:
        for own in range(len(part)):
            ids = part.ids[part.offsets[own] : part.offsets[own + 1]]
            assert joined.ids[joined.offsets[number] : joined.offsets[number + 1]].tolist() == ids.tolist()
            number += 1
    assert joined.trained_tokens.tolist() == [n for part in parts for n in part.trained_tokens.tolist()]
    assert joined.characters.tolist() == [n for part in parts for n in part.characters.tolist()]
