"""What is said of each split before training: where its rows come from, and what is wrong with them as a measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import datasets
import numpy as np

from ...data.encoding import Documents
from ...data.mixing.copies import copies_among
from ...data.mixing.sources import part_of
from ...data.splits import Place, kind_of_rows
from ...tokenizer.lost_text import LostText


@dataclass(frozen=True)
class SplitFacts:
    rows: int
    kind: str
    """As `kind_of_rows` says it."""
    place: Place
    copies: int | None
    """Of its rows those that are training rows too, word for word; None for the training rows themselves."""
    lost: LostText | None
    """Characters that the tokenizer loses; None for rows that training doesn't encode."""
    related: int | None = None
    """Of its rows those of a group that training rows are of, too; None where groups aren't known."""
    copied: str = ""
    """Of which sources of a mixture these training rows are, in words."""

    def __str__(self) -> str:
        copies = f"; also among the training rows: {self.copies:,}{self.copied}" if self.copies else ""
        if self.copies and self.place.held_out:
            copies += " (python -m pipelines.prepare drops copies)"
        related = f"; of a group that training rows are of: {self.related:,}" if self.related else ""
        if self.place.held_out and self.related is not None:
            related = f"{related} (too few groups to leave them whole)" if related else "; in whole groups"
        return f"{self.rows:,} of {self.place}{copies}{related}"

    def metrics(self, name: str) -> dict[str, float]:
        """To log, by name."""
        found: dict[str, float] = {f"rows/{name}": self.rows}
        if self.copies is not None:
            found[f"rows/{name}_in_training"] = self.copies
        if self.related is not None:
            found[f"rows/{name}_related_to_training"] = self.related
        if self.lost is not None:
            found[f"rows/{name}_lost_characters"] = self.lost.share
        return found


def facts_of_splits(
    splits: Mapping[str, datasets.Dataset],
    places: Mapping[str, Place],
    documents: Mapping[str, Documents],
    related: Mapping[str, int] | None = None,
) -> dict[str, SplitFacts]:
    """related: as `related_rows` counts them."""
    train = {part_of(name)[1]: rows for name, rows in splits.items() if part_of(name)[0] == "train"}
    found = {}
    for name, rows in splits.items():
        kind = kind_of_rows(rows.column_names)
        lost = LostText(documents[name].lost, documents[name].text_characters) if name in documents else None
        if part_of(name)[0] == "train":
            found[name] = SplitFacts(len(rows), kind, places[name], None, lost)
            continue
        among = {source: copies_among(rows, others) for source, others in train.items()}
        sources = [f"{source} {int(copies.sum()):,}" for source, copies in among.items() if source and copies.any()]
        copies = int(np.any(list(among.values()), axis=0).sum())
        copied = f" ({', '.join(sources)})" if sources else ""
        found[name] = SplitFacts(len(rows), kind, places[name], copies, lost, (related or {}).get(name), copied)
    return found
