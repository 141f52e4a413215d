"""All texts of training rows, which a vocabulary is learnt from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from .arrow import text_batches
from .conversations.message_rows import texts_of_rows


@dataclass
class Texts:
    """All texts of the rows of each source, as often as they are to count; of part of a pass, rows drawn at random."""

    rows: Sequence[tuple[datasets.Dataset, float]]

    def __iter__(self) -> Iterator[str]:
        for rows, passes in self.rows:
            whole, share = divmod(passes, 1)
            drawn = np.sort(np.random.default_rng(0).permutation(len(rows))[: round(share * len(rows))])
            for part in [*[rows] * int(whole), *([rows.select(drawn)] if len(drawn) else [])]:
                for batch in text_batches(part):
                    for texts in texts_of_rows(batch):
                        yield from texts
