"""Data folders that training reads: train, validation and test files with a manifest, of a sample or a user's rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any

import datasets

from ...system.checksums import sha256_of
from ...system.jsonl import Row, read_jsonl
from ...system.redaction import redact_text
from ..arrow import fingerprint
from ..quarantine import QUARANTINE, DataError, Quarantine
from ..rows import load_rows
from ..sources import has_split
from ..splits import place_in, require_same_kind
from .manifest import begin_folder, earlier_manifest, finish_folder, unseen, write_splits
from .poems import RECIPE, rows_by_split, write_derived_sets
from .verse import SPLITS

SAMPLE = Path(__file__).parents[3] / "data" / "poems.jsonl.gz"


def prepare_sample(folder: Path, sample: Path = SAMPLE) -> dict[str, Any]:
    """The bundled poems → FOLDER/{poems,quatrains,couplets}; returns the manifest."""
    identity = {"source": sample.name, "sha256": sha256_of(sample), "recipe": RECIPE}
    earlier = earlier_manifest(folder, identity)
    if earlier:
        return earlier
    begin_folder(folder, identity)
    by_split = rows_by_split(read_jsonl(sample))
    files = write_splits(folder, {f"poems/{split}": by_split[split] for split in SPLITS})
    return finish_folder(folder, identity, files | write_derived_sets(by_split, folder))


def prepare_rows(
    folder: Path,
    source: str,
    columns: dict[str, str],
    validation_fraction: float,
    test_fraction: float,
    quarantine: Quarantine | None = None,
) -> dict[str, Any]:
    """A user's rows → FOLDER/{train,validation,test}.jsonl.gz without exact copies; returns the manifest.

    A source with splits of its own keeps them. Otherwise each row's place follows from its text alone (by SHA-1),
    so that it stays where it is when rows are added. Bad rows go to quarantine, which becomes
    FOLDER/quarantine.jsonl; without one they are refused. Raises DataError.
    """
    own = [name for name in SPLITS[1:] if has_split(source, name)]
    found = read_splits(source, columns, own, quarantine)
    identity = {
        "source": redact_text(str(source)),
        "sha256": {name or "all": fingerprint(rows) for name, rows in found.items()},
        "fractions": {"validation": validation_fraction, "test": test_fraction},
    }
    earlier = earlier_manifest(folder, identity)
    if earlier:
        return earlier
    seen: set[tuple[str, ...]] = set()
    # Test first: a copy in two splits stays where it would otherwise leak from.
    order = sorted(found, key=("", *SPLITS[::-1]).index)
    unique = {name: list(unseen(found[name], lambda row: tuple(row.values()), seen)) for name in order}
    splits = split_by_hash(unique[""], validation_fraction, test_fraction) if "" in unique else unique
    empty = [name for name in ("train", *own) if not splits[name]]
    if empty:
        raise DataError(f"{source}: every {empty[0]} row is a copy of a row in another split; give it rows of its own")
    copies = sum(map(len, found.values())) - sum(map(len, unique.values()))
    begin_folder(folder, identity)
    files = write_splits(folder, {name: splits[name] for name in SPLITS if splits.get(name)})
    if quarantine and quarantine.rows:
        files[QUARANTINE] = quarantine.write(folder / QUARANTINE)
    return finish_folder(folder, identity | {"exact copies dropped": copies}, files)


def read_splits(
    source: str, columns: dict[str, str], own: Sequence[str], quarantine: Quarantine | None
) -> dict[str, datasets.Dataset]:
    """The splits of a source that has some beside "train", all of one kind; else all its rows, under ""."""
    names: list[str | None] = ["train", *own] if own else [None]
    found = {name or "": load_rows(source, columns, name, quarantine=quarantine) for name in names}
    for name in own:
        require_same_kind(found["train"], found[name], place_in(source, "train"), place_in(source, name))
    return found


def split_by_hash(rows: list[Row], validation_fraction: float, test_fraction: float) -> dict[str, list[Row]]:
    """Rows by the SHA-1 of their src_txt, a number from 0 to 1: test below one bound, validation below the next.

    So the shares are met on average, rows of one src_txt stay together, and none moves when others are added.
    Only where so few rows leave a split empty do they go by rank instead of by bounds.
    """
    order = sorted({row["src_txt"] for row in rows}, key=hash_share)
    shares = {"test": test_fraction, "validation": validation_fraction}
    needed = {"train"} | {name for name, share in shares.items() if share}
    place = {text: split_by_share(hash_share(text), test_fraction, validation_fraction) for text in order}
    if not needed <= set(place.values()):
        held_out = [name for name, share in shares.items() for _ in range(math.ceil(len(order) * share))]
        place = dict(zip(order, held_out + ["train"] * len(order), strict=False))
    if not needed <= set(place.values()):
        raise DataError(
            f"{len(order)} different texts are too few to split into training, validation and test rows: give more, "
            "or set validation_fraction=0 or test_fraction=0"
        )
    return {name: [row for row in rows if place[row["src_txt"]] == name] for name in SPLITS}


def split_by_share(share: float, test: float, validation: float) -> str:
    """The split of a text whose hash_share this is."""
    return "test" if share < test else "validation" if share < test + validation else "train"


def hash_share(text: str) -> float:
    """A number from 0 to 1 that follows from the text alone, evenly spread."""
    return int(sha1(text.encode()).hexdigest(), 16) / 2**160
