"""Measures of the form of verse (poetry/form.py), of what is copied, and of couplets."""

from __future__ import annotations

from collections.abc import Sequence

import datasets

from ..measures import Measure, mean
from ..poetry.copying import TrainingText
from ..poetry.form import couplet_form, form_of
from .rows import TaskRow

FAULTS = ("repeated", "copied", "longest copy", "characters of the first line again")
"""What the names of measures begin with where less is better."""


def training_text(train: datasets.Dataset) -> TrainingText:
    """What verse is held against: answers where there are any, else the texts."""
    return TrainingText(train["tgt_txt" if "tgt_txt" in train.column_names else "src_txt"])


def verse(texts: Sequence[str], rows: Sequence[TaskRow], training: TrainingText | None) -> list[Measure]:
    """Form of each whole poem, its given first clause included; copies in what was generated alone."""
    poems = [row.source + text if row.continued else text for text, row in zip(texts, rows, strict=True)]
    found = means([form_of(poem) for poem in poems])
    if training:
        copied = {"copied from training": training.copied, "longest copy": training.longest}
        found += means([{name: float(of(text)) for name, of in copied.items()} for text in texts])
    return found


def couplet(texts: Sequence[str], rows: Sequence[TaskRow]) -> list[Measure]:
    """Form of each second line beside the first."""
    return means([couplet_form(row.source, text) for text, row in zip(texts, rows, strict=True)])


def means(scores: Sequence[dict[str, float]]) -> list[Measure]:
    return [
        mean(name, [row[name] for row in scores], higher_is_better=not name.startswith(FAULTS)) for name in scores[0]
    ]
