"""Scores with intervals, and whether two models differ on the same rows.

Every metric here is a function of sums over rows: BLEU of n-gram counts, perplexity of losses and characters, a mean
of values and rows. So a metric is kept as its rows' statistics, and resampling rows costs a matrix product:
percentile bootstrap (Efron 1979; Koehn 2004 for BLEU) for intervals, paired approximate randomisation (Noreen 1989;
Riezler and Maxwell 2005) for differences. Rows that hang together (cut from one poem, about one passage: their
column `group`) form a cluster and are resampled together (Davison and Hinkley 1997, section 3.8): taken for
independent, they make intervals too narrow and tests too sure.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..data.groups import has_group
from ..model.loss import LARGEST_EXPONENT

CELLS = 1 << 22
"""Elements of a resampling matrix that are made at once: 32 MiB."""

NORMAL = NormalDist()


@dataclass(frozen=True)
class Metric:
    """A metric of one model on rows."""

    name: str
    statistics: np.ndarray
    """(rows, k): what each row adds to the sums."""
    value_of: Callable[[np.ndarray], np.ndarray]
    """Sums (…, k) → values (…)."""
    higher_is_better: bool = True
    clusters: np.ndarray | None = None
    """(rows,): the number of each row's cluster, from 0; None: each row stands alone."""
    unread: np.ndarray | None = None
    """(rows,): whether a row holds characters that the model's tokenizer loses; None: none does."""
    best: float | None = None
    """The value that is best, where neither more nor less is better beyond it: 1 of a ratio of lengths."""

    def __post_init__(self) -> None:
        if self.statistics.ndim != 2 or not len(self.statistics):
            raise ValueError(f"{self.name} needs the statistics of at least one row, (rows, k)")
        if self.clusters is not None and self.clusters.shape != self.statistics.shape[:1]:
            raise ValueError(f"{self.name} has {len(self.statistics)} rows, but clusters {self.clusters.shape}")

    @functools.cached_property
    def units(self) -> np.ndarray:
        """(clusters, k): the summed statistics of each cluster; without clusters, of each row."""
        if self.clusters is None:
            return self.statistics
        return np.stack([np.bincount(self.clusters, column) for column in self.statistics.T], 1)

    @property
    def value(self) -> float:
        return float(self.value_of(self.statistics.sum(0)))

    @property
    def direction(self) -> str:
        """Which values are good, in words."""
        if self.best is not None:
            return f"best at {self.best:g}"
        return "higher is better" if self.higher_is_better else "lower is better"

    @property
    def is_perplexity(self) -> bool:
        """Perplexities are compared by ratios, and so drawn on a logarithmic axis."""
        return self.value_of is exp_ratio

    def cost(self, value: float) -> float:
        return cost(value, self.higher_is_better, self.best)

    def distance(self) -> Metric:
        """Of a metric with a best value: how far from it the value is. Every other metric is itself."""
        best, value_of = self.best, self.value_of
        if best is None:
            return self
        return dataclasses.replace(
            self, value_of=lambda sums: np.abs(value_of(sums) - best), higher_is_better=False, best=None
        )

    def interval(self, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """(low, high) by the percentile bootstrap over clusters; (nan, nan) for a single one."""
        return intervals([self], confidence, resamples, seed)[0]

    def at(self, rows: np.ndarray) -> Metric:
        """The same metric of some rows, by a mask."""
        clusters = None if self.clusters is None else np.unique(self.clusters[rows], return_inverse=True)[1]
        return dataclasses.replace(self, statistics=self.statistics[rows], clusters=clusters, unread=None)

    def of_rows(self) -> np.ndarray:
        """The value of each row alone, (rows,)."""
        return self.value_of(self.statistics)


def cost(value: float, higher_is_better: bool, best: float | None = None) -> float:
    """What to rank a metric's value by: the smaller the better; infinite for nan."""
    if math.isnan(value):
        return math.inf
    if best is not None:
        return abs(value - best)
    return -value if higher_is_better else value


def intervals(
    metrics: Sequence[Metric], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[tuple[float, float]]:
    """The `interval` of each; metrics with as many clusters share one drawing, which is what takes the time."""
    found: dict[int, tuple[float, float]] = {}
    for rows in {len(metric.units) for metric in metrics}:
        together = [index for index, metric in enumerate(metrics) if len(metric.units) == rows]
        values: list[list[np.ndarray]] = [[] for _ in together]
        for w in bootstrap_weights(rows, resamples, np.random.default_rng(seed)):
            for column, index in zip(values, together, strict=True):
                column.append(metrics[index].value_of(w @ metrics[index].units))
        for column, index in zip(values, together, strict=True):
            drawn = np.concatenate(column)
            drawn = drawn[~np.isnan(drawn)]  # draws of nothing but rows without a value
            found[index] = math.nan, math.nan
            if rows > 1 and len(drawn):
                low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
                found[index] = float(low), float(high)
    return [found[index] for index in range(len(metrics))]


def with_clusters(metric: Metric, labels: Sequence[str] | None) -> Metric:
    """The metric with its rows clustered by label; rows without one ("" or JSON's null) stand alone."""
    if labels is None:
        return metric
    return dataclasses.replace(metric, clusters=np.unique(cluster_labels(labels), return_inverse=True)[1])


def cluster_labels(labels: Sequence[str]) -> list[str]:
    """With one of its own for each row that has none."""
    return [label if has_group(label) else f"row {row}" for row, label in enumerate(labels)]


def rows_in_words(metric: Metric) -> str:
    """How many rows a metric is of, e.g. "558 test rows in 256 groups"."""
    rows, clusters = len(metric.statistics), len(metric.units)
    return f"{rows:,} test rows" + (f" in {clusters:,} groups" if clusters < rows else "")


def mean(name: str, values: Sequence[float] | np.ndarray, higher_is_better: bool = True) -> Metric:
    """The mean of one value a row; rows whose value is nan don't count."""
    column = np.asarray(values, np.float64)
    there = ~np.isnan(column)
    return Metric(name, np.stack([np.where(there, column, 0.0), there], 1), ratio, higher_is_better)


def perplexity(name: str, nll: np.ndarray, predictions: np.ndarray) -> Metric:
    """exp(Σ nll / Σ predictions): nll (rows,) in nats, predictions (rows,) in characters (or tokens) and ends."""
    return Metric(name, np.stack([nll, predictions], 1).astype(np.float64), exp_ratio, higher_is_better=False)


def ratio(sums: np.ndarray) -> np.ndarray:
    """sums (…, 2): numerator, denominator; nan where there is nothing to divide by."""
    undefined = np.full(sums.shape[:-1], np.nan)
    return np.divide(sums[..., 0], sums[..., 1], out=undefined, where=sums[..., 1] != 0)


def exp_ratio(sums: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(ratio(sums), LARGEST_EXPONENT))


@dataclass(frozen=True)
class PairedComparison:
    """A new model's metric against an old one's, on the same rows."""

    name: str
    new: float
    old: float
    difference: float
    """new − old; of a metric where lower is better it is good when negative."""
    low: float
    high: float
    """95 % interval of the difference (bootstrap over clusters)."""
    p_value: float
    """Two-sided, of `permutation_test`."""
    detectable: float
    """The smallest difference that so many rows would show with 80 % power at the 5 % level."""
    power: float
    """The probability that rows like these show a difference as large as the one found."""
    verdict: str
    """better, worse or undecided (p_value above the level, or only by rows that the favoured model can't read)."""
    unread: int = 0
    """Rows for the sake of which it is undecided: they hold characters that the favoured model's tokenizer loses."""


def compare(new: Metric, old: Metric, level: float = 0.05, resamples: int = 5000, seed: int = 0) -> PairedComparison:
    """A paired test of two models' values of one metric; level: the p-value up to which a difference counts as one.

    Of a metric with a best value the distances to it are compared, and all numbers are of them.
    Where a model's tokenizer loses characters of some rows, it must also be better on the rows that it reads whole.
    Raises ValueError where the two aren't the same metric, on as many rows in the same clusters.
    """
    if (new.name, new.statistics.shape) != (old.name, old.statistics.shape):
        raise ValueError(f"{new.name} {new.statistics.shape} and {old.name} {old.statistics.shape} can't be compared")
    if not np.array_equal(new.clusters, old.clusters):  # type: ignore[arg-type]  # None and None are equal
        raise ValueError(f"{new.name}: the two models' rows are in different groups and can't be compared")
    new, old = new.distance(), old.distance()
    found = paired_test(new, old, level, resamples, seed)
    favoured = {"better": new.unread, "worse": old.unread}.get(found.verdict)
    if favoured is None:
        return found
    whole = ~favoured
    if whole.any() and paired_test(new.at(whole), old.at(whole), level, resamples, seed).verdict == found.verdict:
        return found
    return dataclasses.replace(found, verdict="undecided", unread=int(favoured.sum()))


def paired_test(new: Metric, old: Metric, level: float, resamples: int, seed: int) -> PairedComparison:
    rng = np.random.default_rng(seed)
    difference = new.value - old.value
    p_value = permutation_test(new, old, abs(difference), resamples, rng)
    rows = len(new.units)
    pairs = [new.value_of(w @ new.units) - old.value_of(w @ old.units) for w in bootstrap_weights(rows, resamples, rng)]
    resampled = np.concatenate(pairs)
    resampled = resampled[~np.isnan(resampled)]  # draws of nothing but rows without a value
    low, high = np.quantile(resampled, [0.025, 0.975]) if rows > 1 and len(resampled) else (math.nan, math.nan)
    error = float(resampled.std()) if len(resampled) else math.nan
    better = difference > 0 if new.higher_is_better else difference < 0
    critical = NORMAL.inv_cdf(1 - level / 2)
    return PairedComparison(
        name=new.name,
        new=new.value,
        old=old.value,
        difference=difference,
        low=float(low),
        high=float(high),
        p_value=p_value,
        detectable=(critical + NORMAL.inv_cdf(0.8)) * error,
        power=NORMAL.cdf(abs(difference) / error - critical) if error else float(difference != 0),
        verdict=("better" if better else "worse") if p_value <= level else "undecided",
    )


def permutation_test(new: Metric, old: Metric, at_least: float, resamples: int, rng: np.random.Generator) -> float:
    """The p-value: the share of random swaps of clusters between the models that differ by at least `at_least`."""
    rows = len(new.units)
    total, apart = new.units.sum(0) + old.units.sum(0), old.units - new.units
    more = 0
    for count in draws_at_once(rows, resamples):
        swapped = new.units.sum(0) + rng.integers(0, 2, (count, rows)).astype(np.float64) @ apart
        found = np.abs(new.value_of(swapped) - old.value_of(total - swapped))
        more += int((~(found < at_least * (1 - 1e-9))).sum())  # nan, of rows without a value, speaks for no difference
    return (more + 1) / (resamples + 1)


def bootstrap_weights(rows: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Matrices (draws, rows) of how often a draw holds each row; `resamples` draws in all."""
    for count in draws_at_once(rows, resamples):
        drawn = rng.integers(0, rows, (count, rows)) + rows * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float64)


def draws_at_once(rows: int, resamples: int) -> Iterator[int]:
    """`resamples` in parts, each small enough for memory."""
    at_once = max(1, CELLS // rows)
    for start in range(0, resamples, at_once):
        yield min(at_once, resamples - start)
