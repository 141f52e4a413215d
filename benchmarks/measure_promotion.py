"""How often the paired test of pipelines.register promotes what isn't better, and how often what is: a table.

    python -m benchmarks.measure_promotion

For docs/evaluation.md. The model that comes with moyun is fine-tuned on the bundled quatrains (a minute on two cores),
and what the quatrains of each poem cost it before and after is drawn from, 1,000 times: poems are drawn and not rows,
as the quatrains of one poem are alike, and other test rows would be of other poems. Which model is better must be known
to count errors, so one is made exactly as good as the other, or so much better, in one of two ways:

- exchanged: of each drawn poem, chance says whose loss is whose. That is the test's own null hypothesis.
- levelled: the losses of one model are shifted by so much a character that both have the same perplexity on all poems;
  then poems are drawn anew each time. The models stay two models, each better on some, and equal on the population
  that test poems come from: what a user means by "not better". The honest one of the two, as nothing in the test was
  made for it.

"Tested by rows" is what the test would do, were it not told which rows are of one poem.

The same model twice would be no check: all differences are 0, and nothing is ever promoted.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import numpy as np

from modules.config.base import POEMS, model_folder
from modules.config.data import DataConfig
from modules.config.loader import load_config
from modules.data.splits import load_splits
from modules.evaluation.likelihood import score_folder
from modules.evaluation.statistics import Metric, compare, perplexity, rows_in_words, with_clusters
from modules.evaluation.task_rows import GROUP
from pipelines.finetune import finetune
from pipelines.prepare import prepare

TRIALS = 1000
RESAMPLES = 2000
STEPS = 150
Draw = Callable[[np.random.Generator], tuple[Metric, Metric]]
"""(new, old)"""


def finetuned() -> Path:
    options = [f"train.max_steps={STEPS}", "train.learning_rate=1e-4", "train.schedule=cosine"]
    made = finetune(load_config("finetune", [f"train.init_from={POEMS}", "train.sample_prompts=[]", *options]))
    assert made.model
    return made.model


def losses(name: str, folder: Path, held_out: list[datasets.Dataset]) -> Metric:
    found = [score_folder(folder, rows, 8192).perplexity_per_char for rows in held_out]
    poem = [f"{part} {number}" for part, measure in enumerate(found) for number in measure.clusters.tolist()]
    return with_clusters(as_measure(np.concatenate([measure.statistics for measure in found])), poem)


def as_measure(statistics: np.ndarray) -> Metric:
    return perplexity("p", statistics[:, 0], statistics[:, 1])


def drawn(new: np.ndarray, old: np.ndarray, rows: int, rng: np.random.Generator) -> tuple[Metric, Metric]:
    chosen = rng.integers(0, len(new), rows)
    return as_measure(new[chosen]), as_measure(old[chosen])


def by_rows(
    new: np.ndarray, old: np.ndarray, poem: np.ndarray, poems: int, rng: np.random.Generator
) -> tuple[Metric, Metric]:
    """`drawn`, whose test is then told of rows and not of the poems that they belong to. new, old (rows, 2)."""
    members = np.split(np.argsort(poem, kind="stable"), np.cumsum(np.bincount(poem))[:-1])
    chosen = np.concatenate([members[i] for i in rng.integers(0, len(members), poems)])
    return as_measure(new[chosen]), as_measure(old[chosen])


def exchanged(new: np.ndarray, old: np.ndarray, rows: int, rng: np.random.Generator) -> tuple[Metric, Metric]:
    chosen = rng.integers(0, len(new), rows)
    swap = rng.integers(0, 2, (rows, 1)).astype(bool)
    pair = np.where(swap, old[chosen], new[chosen]), np.where(swap, new[chosen], old[chosen])
    return as_measure(pair[0]), as_measure(pair[1])


def levelled(new: np.ndarray, old: np.ndarray, effect: float) -> np.ndarray:
    """`new`, shifted so that its perplexity on all rows is old's less that share."""
    sums_new, sums_old = new.sum(0), old.sum(0)
    shift = sums_old[0] / sums_old[1] + np.log(1 - effect) - sums_new[0] / sums_new[1]
    return np.stack([new[:, 0] + shift * new[:, 1], new[:, 1]], 1)


def verdicts(draw: Draw) -> Counter[str]:
    return Counter(compare(*draw(np.random.default_rng(t)), resamples=RESAMPLES, seed=t).verdict for t in range(TRIALS))


def main() -> None:
    os.chdir(tempfile.mkdtemp())
    prepared = prepare(load_config("prepare")).folder
    splits = load_splits(DataConfig(path=str(prepared / "quatrains")), seed=0, extras={GROUP})
    held_out = [splits[name] for name in ("validation", "test")]
    new, old = losses("after", finetuned(), held_out), losses("before", model_folder(POEMS), held_out)
    found = compare(new, old)
    print(
        f"\n{rows_in_words(new)}; before: {found.old:.1f}, after: {found.new:.1f} ({found.difference:+.2f}, "
        f"{found.low:+.2f} to {found.high:+.2f}, p = {found.p_value:.3f}: {found.verdict})\n"
    )
    print(f"| of {TRIALS} comparisons | poems | better (promoted) | worse | undecided |\n|---|---|---|---|---|")
    for size in (100, 500):
        cases: dict[str, Draw] = {"equal: exchanged": partial(exchanged, new.units, old.units, size)}
        rows = levelled(new.statistics, old.statistics, 0.0), old.statistics
        cases["equal: levelled, and tested by rows"] = partial(by_rows, *rows, new.clusters, size)
        for effect in (0.0, 0.01, 0.02, 0.05):
            name = f"better by {effect:.0%}" if effect else "equal: levelled"
            cases[name] = partial(drawn, levelled(new.units, old.units, effect), old.units, size)
        for name, draw in cases.items():
            count = verdicts(draw)
            shares = " | ".join(f"{count[verdict] / TRIALS:.1%}" for verdict in ("better", "worse", "undecided"))
            print(f"| {name} | {size} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
