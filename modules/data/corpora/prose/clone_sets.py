"""A user's clone of a public repository → rows in splits, for prepare_rows to clean further and to write.

A split follows from the name of the chapter, article or law alone. So the pairs of the classical books, and each of
their sides as running text, have the same chapters in each split: what is pretrained on holds nothing that a
translation is tested on. And what data/held_out.tsv names stays out of training whenever the clone was made, so that
models/chinese, which was trained on the rest, is tested on none of its training rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from ....config.data import CLONES, PrepareConfig
from ...groups import GROUP, hash_share
from ...quarantine import DataError
from ..folders import GivenRows, prepare_rows
from ..manifest import Manifest
from ..verse import SPLITS
from .chapters import good_pairs, read_chapters
from .clone_files import require_clone
from .markdown_text import read_articles, read_statutes
from .running_text import running_text

Text = tuple[str, list[dict[str, str]]]
"""(what it is called, its rows)"""


@dataclass(frozen=True)
class CloneSet:
    licence: str
    held_out: float
    """Share of the chapters, articles or laws that go to test, and to validation, of a clone without those of
    HELD_OUT."""


HELD_OUT = Path(__file__).parents[4] / "data" / "held_out.tsv"
"""Source, split, and a name of its chapter, article or law, a line."""

SETS = {
    "classical_modern": CloneSet("MIT; its texts were collected from the web, see the repository's notice", 0.005),
    "articles": CloneSet("Apache-2.0; translated from articles whose publishers have terms of their own", 0.01),
    "statutes": CloneSet("none: laws have no copyright (Copyright Law of the PRC, article 5)", 0.01),
}


def prepare_clone(config: PrepareConfig, folder: Path, report: Callable[[str, float], None]) -> Manifest:
    """The rows of a clone, as a user's own go into a folder; of near copies one is kept."""
    given = rows_of_clone(config, report)
    report("rows", 0)
    manifest = prepare_rows(folder, config.source, {}, 0, 0, near_copies="drop", given=given)
    report("rows", 1)
    return manifest


def rows_of_clone(config: PrepareConfig, report: Callable[[str, float], None]) -> GivenRows:
    """ValueError where archive is no clone of the source's repository; DataError where it holds too few texts."""
    assert config.archive
    found, counts = SETS[config.source], Counter[str]()
    report("read the clone", 0)
    texts = list(_texts_of(config, counts))
    places = places_of([label for label, _ in texts], config.source)
    columns: dict[str, dict[str, list[str]]] = {name: {} for name in SPLITS}
    for label, rows in texts:
        for row in rows:
            for name, value in {**row, GROUP: label}.items():
                columns[places[label]].setdefault(name, []).append(value)
    if empty := [name for name in SPLITS if not columns[name]]:
        raise DataError(f"{config.archive}: {len(texts)} usable texts leave no {empty[0]} rows; give the whole clone")
    report("read the clone", 1)
    splits = datasets.DatasetDict({name: datasets.Dataset.from_dict(columns[name]) for name in SPLITS})
    facts = {"repository": f"github.com/{CLONES[config.source]}", "licence": found.licence, "counts": dict(counts)}
    return GivenRows(splits, facts)


def _texts_of(config: PrepareConfig, counts: Counter[str]) -> Iterator[Text]:
    """In their order; all of them, also those that give no rows, so that splits don't hang on how rows are chosen."""
    folders = require_clone(config.source, config.archive or "")
    if config.source != "classical_modern":
        read = read_articles if config.source == "articles" else read_statutes
        yield from ((label, [{"src_txt": text}]) for label, text in read(folders, counts))
        return
    for label, chapter in read_chapters(folders, counts):
        counts["chapters"] += 1
        if config.join:
            yield label, _joined(pair[config.join == "tgt_txt"] for pair in chapter)
        else:
            yield label, [{"src_txt": source, "tgt_txt": target} for source, target in good_pairs(chapter, counts)]


def _joined(sentences: Iterable[str]) -> list[dict[str, str]]:
    text = running_text(filter(None, sentences))
    return [{"src_txt": text}] if text else []


def places_of(labels: Sequence[str], source: str) -> dict[str, str]:
    """Label → split: as HELD_OUT says. Of a clone that lacks those of a split, the others with the lowest hashes are
    it; at least one each."""
    lines = (line.split("\t") for line in HELD_OUT.read_text(encoding="utf-8").splitlines())
    held_out = {label: split for of, split, label in lines if of == source}
    places = {label: held_out.get(label, "train") for label in labels}
    free = sorted((label for label in places if label not in held_out), key=hash_share)
    count = max(1, round(SETS[source].held_out * len(places)))
    for split in ("test", "validation"):
        if split not in places.values():
            places |= dict.fromkeys(free[:count], split)
            free = free[count:]
    return places
