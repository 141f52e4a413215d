"""Data folders that training reads: train, validation and test files with a manifest, of a sample or a user's rows."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b, sha1
from pathlib import Path
from typing import Any

import datasets

from ...system.checksums import sha256_of
from ...system.jsonl import Row, read_jsonl
from ...system.redaction import redact_text
from ..arrow import fingerprint, text_batches
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
    section: str = "",
) -> dict[str, Any]:
    """A user's rows → FOLDER/{train,validation,test}.jsonl.gz without exact copies; returns the manifest.

    A source with splits of its own keeps them. Otherwise each row's place follows from its text alone (by SHA-1),
    so that it stays where it is when rows are added. Bad rows go to quarantine, which becomes
    FOLDER/quarantine.jsonl; without one they are refused. Raises DataError.

    section: what stands before the key `columns` where it is typed, for messages.
    """
    own = [name for name in SPLITS[1:] if has_split(source, name)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".rows", ".", folder.parent) as place:  # checked rows may be more than fit memory
        read = partial(load_rows, source, columns, cache=Path(place), quarantine=quarantine, section=section)
        found = read_splits(read, source, own, section)
        identity = {
            "source": redact_text(str(source)),
            "sha256": {name or "all": fingerprint(rows) for name, rows in found.items()},
            "fractions": {"validation": validation_fraction, "test": test_fraction},
        }
        if earlier := earlier_manifest(folder, identity):
            return earlier
        splits = divided(without_copies(found), source, validation_fraction, test_fraction)
        copies = sum(map(len, found.values())) - sum(map(len, splits.values()))
        begin_folder(folder, identity)
        files = write_splits(folder, {name: rows_of(splits[name]) for name in SPLITS if name in splits})
    if quarantine and quarantine.rows:
        files[QUARANTINE] = quarantine.write(folder / QUARANTINE)
    facts = {"columns": next(iter(found.values())).column_names, "exact copies dropped": copies}
    return finish_folder(folder, identity | facts, files)


def read_splits(
    read: Callable[..., datasets.Dataset], source: str, own: Sequence[str], section: str
) -> dict[str, datasets.Dataset]:
    """The splits of a source that has some beside "train", all of one kind; else all its rows, under ""."""
    names: list[str | None] = ["train", *own] if own else [None]
    found = {name or "": read(split=name) for name in names}
    for name in own:
        require_same_kind(found["train"], found[name], place_in(source, "train"), place_in(source, name), section)
    return found


def divided(
    unique: Mapping[str, datasets.Dataset], source: str, validation_fraction: float, test_fraction: float
) -> dict[str, datasets.Dataset]:
    """The splits that have rows. DataError where one of the source's own has none left, or training hasn't."""
    splits = split_by_hash(unique[""], validation_fraction, test_fraction) if "" in unique else dict(unique)
    for name in unique.keys() - {""}:
        if not len(unique[name]):
            raise DataError(f"{source}: every {name} row is a copy of a row in another split; give it rows of its own")
    return {name: rows for name, rows in splits.items() if len(rows)}


def without_copies(found: Mapping[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """Each row once. Test first: a copy in two splits stays where it would otherwise leak from."""
    seen: set[bytes] = set()
    unique: dict[str, datasets.Dataset] = {}
    for name in sorted(found, key=("", *SPLITS[::-1]).index):
        numbered = enumerate(rows_of(found[name]))
        unique[name] = found[name].select([number for number, _ in unseen(numbered, lambda row: digest(row[1]), seen)])
    return unique


def digest(row: Mapping[str, str]) -> bytes:
    """As good as the texts themselves to tell rows apart by, and 16 bytes."""
    return blake2b("\0".join(f"{len(text)} {text}" for text in row.values()).encode(), digest_size=16).digest()


def rows_of(rows: datasets.Dataset) -> Iterator[Row]:
    for batch in text_batches(rows):
        for texts in zip(*batch.values(), strict=True):
            yield dict(zip(batch, texts, strict=True))


def split_by_hash(
    rows: datasets.Dataset, validation_fraction: float, test_fraction: float
) -> dict[str, datasets.Dataset]:
    """Rows by the SHA-1 of their src_txt, a number from 0 to 1: test below one bound, validation below the next.

    So the shares are met on average, rows of one src_txt stay together, and none moves when others are added.
    Only where so few rows leave a split empty do they go by rank instead of by bounds.
    """
    found = [hash_share(row["src_txt"]) for row in rows_of(rows)]
    order = sorted(set(found))
    shares = {"test": test_fraction, "validation": validation_fraction}
    needed = {"train"} | {name for name, share in shares.items() if share}
    place = {share: split_by_share(share, test_fraction, validation_fraction) for share in order}
    if not needed <= set(place.values()):
        held_out = [name for name, share in shares.items() for _ in range(math.ceil(len(order) * share))]
        place = dict(zip(order, held_out + ["train"] * len(order), strict=False))
    if not needed <= set(place.values()):
        raise DataError(
            f"{len(order)} different texts are too few to split into training, validation and test rows: give more, "
            "or set validation_fraction=0 or test_fraction=0"
        )
    return {
        name: rows.select([number for number, share in enumerate(found) if place[share] == name]) for name in SPLITS
    }


def split_by_share(share: float, test: float, validation: float) -> str:
    """The split of a text whose hash_share this is."""
    return "test" if share < test else "validation" if share < test + validation else "train"


def hash_share(text: str) -> float:
    """A number from 0 to 1 that follows from the text alone, evenly spread."""
    return int(sha1(text.encode()).hexdigest(), 16) / 2**160
