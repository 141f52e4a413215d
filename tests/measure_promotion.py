"""How often the paired test of pipelines.register promotes what isn't better, and how often what is: a table.

    python tests/measure_promotion.py

For docs/evaluation.md. Two tiny models of other seeds are trained on the bundled quatrains (about two minutes on two
cores), and what the quatrains of each poem cost them is drawn from, 1,000 times: poems are drawn and not rows, as the
quatrains of one poem are alike, and other test rows would be of other poems. Which model is better must be known to
count errors, so one is made exactly as good as the other, or so much better, in one of two ways:

- exchanged: of each drawn poem, chance says whose loss is whose. That is the test's own null hypothesis.
- levelled: the losses of one model are shifted by so much a character that both have the same perplexity on all poems;
  then poems are drawn anew each time. The models stay two models, each better on some, and equal on the population
  that test poems come from: what a user means by "not better". The honest one of the two, as nothing in the test was
  made for it.

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

from modules.config import DataConfig, load_config
from modules.measures import Measure, compare, perplexity
from modules.splits import load_splits
from modules.tasks.rows import GROUP
from pipelines.evaluate import score_folder
from pipelines.finetune import finetune
from pipelines.prepare import prepare

TRIALS = 1000
RESAMPLES = 2000
STEPS = 150
Draw = Callable[[np.random.Generator], tuple[Measure, Measure]]
"""(new, old)"""


def trained(seed: int) -> Path:
    made = finetune(
        load_config(
            "finetune",
            ["model=tiny", f"seed={seed}", f"train.max_steps={STEPS}", "train.learning_rate=2e-3",
             "train.schedule=cosine", "train.sample_prompts=[]", "train.init_from=null", f"output_dir=model-{seed}"],
        )
    )  # fmt: skip
    assert made.model
    return made.model


def losses(seed: int, folder: Path, held_out: list[datasets.Dataset]) -> np.ndarray:
    """(poems, 2)"""
    return np.concatenate([score_folder(f"seed {seed}", folder, rows, 8192).units for rows in held_out])


def as_measure(statistics: np.ndarray) -> Measure:
    return perplexity("p", statistics[:, 0], statistics[:, 1])


def drawn(new: np.ndarray, old: np.ndarray, rows: int, rng: np.random.Generator) -> tuple[Measure, Measure]:
    chosen = rng.integers(0, len(new), rows)
    return as_measure(new[chosen]), as_measure(old[chosen])


def exchanged(new: np.ndarray, old: np.ndarray, rows: int, rng: np.random.Generator) -> tuple[Measure, Measure]:
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
    new, old = (losses(seed, trained(seed), held_out) for seed in (1, 2))
    found = compare(as_measure(new), as_measure(old))
    print(
        f"\n{len(new)} poems; seed 1: {found.new:.1f}, seed 2: {found.old:.1f} ({found.difference:+.2f}, "
        f"{found.low:+.2f} to {found.high:+.2f}, p = {found.p_value:.3f}: {found.verdict})\n"
    )
    print(f"| of {TRIALS} comparisons | poems | better (promoted) | worse | undecided |\n|---|---|---|---|---|")
    for size in (100, 500):
        cases: dict[str, Draw] = {"equal: exchanged": partial(exchanged, new, old, size)}
        for effect in (0.0, 0.01, 0.02, 0.05):
            name = f"better by {effect:.0%}" if effect else "equal: levelled"
            cases[name] = partial(drawn, levelled(new, old, effect), old, size)
        for name, draw in cases.items():
            count = verdicts(draw)
            shares = " | ".join(f"{count[verdict] / TRIALS:.1%}" for verdict in ("better", "worse", "undecided"))
            print(f"| {name} | {size} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
