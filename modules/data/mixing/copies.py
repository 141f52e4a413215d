"""Rows that stand among those of another source, which may be of another kind."""

from __future__ import annotations

import datasets
import numpy as np

from ..arrow import find_copies
from ..splits import kind_of_rows


def copies_among(rows: datasets.Dataset, others: datasets.Dataset) -> np.ndarray:
    """Whether each row stands word for word among the others, (rows,) bool; of another kind: whether what is learnt of
    it is also learnt there, as a poem that is some other source's answer."""
    if kind_of_rows(rows.column_names) == kind_of_rows(others.column_names):
        return find_copies(rows, others)
    return find_copies(*(learnt(each) for each in (rows, others)))


def learnt(rows: datasets.Dataset) -> datasets.Dataset:
    """The texts that are learnt, as src_txt."""
    if "tgt_txt" not in rows.column_names:
        return rows.select_columns("src_txt")
    return rows.select_columns("tgt_txt").rename_column("tgt_txt", "src_txt")
