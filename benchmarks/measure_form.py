"""The form of verse by people, and of the same verse with its characters shuffled: ceiling and floor of a model.

python -m benchmarks.measure_form [FOLDER [TRAIN]]

The test rows of FOLDER (prepared/sample), and what of them is copied from those of TRAIN.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from modules.config.verse.han import han_only
from modules.evaluation.statistics import mean
from modules.evaluation.verse.copying import TrainingText
from modules.evaluation.verse.form import couplet_form, form_of
from modules.inference.verse.rhymes import rhymes_of, tone_of
from modules.system.jsonl import read_jsonl


def shuffled(text: str, letters: random.Random) -> str:
    """The same characters in another order, punctuation where it was."""
    han = list(han_only(text))
    letters.shuffle(han)
    return "".join(han.pop() if han_only(character) else character for character in text)


def table(title: str, human: Iterable[dict[str, float]], floor: Iterable[dict[str, float]]) -> None:
    human, floor = list(human), list(floor)
    print(f"\n| {title} | rows with a say | by people | shuffled |\n|---|---|---|---|")
    for name in human[0]:
        values = np.array([row[name] for row in human])
        measure = mean(name, values)
        low, high = measure.interval()
        shuffle = mean(name, [row[name] for row in floor]).value
        print(f"| {name} | {(~np.isnan(values)).sum()} | {measure.value:.3f} ({low:.3f}–{high:.3f}) | {shuffle:.3f} |")


def say_coverage(texts: list[str]) -> None:
    characters = [character for text in texts for character in han_only(text)]
    known, one = (sum(map(bool, map(found, characters))) / len(characters) for found in (rhymes_of, tone_of))
    print(
        f"Of {len(characters):,} characters {1 - known:.1%} not in 平水韵, {known - one:.1%} of readings in both tones"
    )


def main(folder: Path, train_folder: Path) -> None:
    letters = random.Random(0)
    for name in ("poems", "quatrains"):
        test = [row["src_txt"] for row in read_jsonl(folder / name / "test.jsonl.gz")]
        train = TrainingText(row["src_txt"] for row in read_jsonl(train_folder / name / "train.jsonl.gz"))
        say_coverage(test)
        other = [shuffled(text, letters) for text in test]
        forms = [
            [
                {**form_of(text), "copied from train": train.copied(text), "longest copied run": train.longest(text)}
                for text in side
            ]
            for side in (test, other)
        ]
        table(f"{len(test)} {name}", *forms)
    rows = read_jsonl(folder / "couplets" / "test.jsonl.gz")
    halves = [shuffled(f"{row['src_txt']}，{row['tgt_txt']}", letters).split("，") for row in rows]
    table(
        f"{len(rows)} couplets",
        (couplet_form(row["src_txt"], row["tgt_txt"]) for row in rows),
        (couplet_form(first, second) for first, second in halves),
    )


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:3]] or [Path("prepared/sample")]
    main(folders[0], folders[-1])
