"""Data folders that training reads: train, validation and test files with a manifest, of a sample or a user's rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ...system.checksums import sha256_of
from ...system.jsonl import Row, read_jsonl
from ...system.redaction import redact_text
from ..arrow import TEXTS, fingerprint, text_batches
from ..conversations.alpaca_rows import columns_beside
from ..conversations.message_rows import SYSTEM_COLUMN, answers_texts, users_texts
from ..groups import GROUP, Numbers, count_of_other_groups, group_labels, has_group, places_by_hash
from ..quarantine import QUARANTINE, DataError, Quarantine
from ..reading.column_names import MESSAGES, OTHER_COLUMNS, require_mapped
from ..rows import load_rows
from ..sources import has_split
from ..splits import groups_are_named, place_in, require_same_kind, texts_alone
from .dedup import MOST_TEXTS, near_copies_found, near_copies_of_many
from .manifest import begin_folder, earlier_manifest, finish_folder, unseen, write_splits
from .poems import RECIPE, Progress, rows_by_split, write_derived_sets
from .prose.running_text import columns_joined, joined_rows
from .verse import SPLITS

RATINGS, REJECTED = "ratings", "rejected"
"""Columns of served answers: what people thought of the row's, and the others that they didn't like."""

LISTS = (MESSAGES, *OTHER_COLUMNS[:3], RATINGS, REJECTED)
"""Columns whose values are lists."""


@dataclass(frozen=True)
class GivenRows:
    """Rows that no file of rows holds: of served requests, or of a clone. facts: for the manifest, where they come from
    and what was left out."""

    rows: list[dict[str, Any]] | datasets.DatasetDict
    facts: dict[str, Any]


SAMPLE = Path(__file__).parents[3] / "data" / "poems.jsonl.gz"


def prepare_sample(folder: Path, sample: Path = SAMPLE, report: Progress = lambda step, done: None) -> dict[str, Any]:
    """The bundled poems → FOLDER/{poems,quatrains,couplets}; returns the manifest."""
    report("bundled poems", 0)
    identity = {"source": sample.name, "sha256": sha256_of(sample), "recipe": RECIPE}
    earlier = earlier_manifest(folder, identity)
    if earlier:
        return earlier
    begin_folder(folder, identity)
    by_split = rows_by_split(read_jsonl(sample))
    files = write_splits(folder, {f"poems/{split}": by_split[split] for split in SPLITS})
    report("bundled poems", 1)
    return finish_folder(folder, identity, files | write_derived_sets(by_split, folder))


def prepare_rows(
    folder: Path,
    source: str,
    columns: dict[str, str],
    validation_fraction: float,
    test_fraction: float,
    quarantine: Quarantine | None = None,
    section: str = "",
    near_copies: str = "report",
    given: GivenRows | None = None,
    join: str | None = None,
) -> dict[str, Any]:
    """A user's rows → FOLDER/{train,validation,test}.jsonl.gz without exact copies; returns the manifest.

    A source with splits of its own keeps them. Otherwise each row's place follows from its text alone (by SHA-1),
    so that it stays where it is when rows are added; groups and near copies aren't divided (`split_by_hash`). Bad rows
    go to quarantine, which becomes FOLDER/quarantine.jsonl; without one they are refused. Raises DataError.

    section: what stands before the key `columns` where it is typed, for messages.
    near_copies: as PrepareConfig has it.
    given: the rows, where no file has them. join: as PrepareConfig has it.
    """
    origin, extras = (given.rows, (*OTHER_COLUMNS, RATINGS, REJECTED)) if given else (source, OTHER_COLUMNS)
    own = [name for name in SPLITS[1:] if has_split(origin, name)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".rows", ".", folder.parent) as place:  # checked rows may be more than fit memory
        seen: dict[str, None] = {}
        read = partial(load_rows, origin, columns, cache=Path(place), quarantine=quarantine, section=section)
        found = read_splits(partial(read, extras=extras, seen=seen), source, own, section)
        require_mapped((rows.column_names for rows in found.values()), columns, section)
        if join:
            found = {name: joined_rows(rows, join, f"{section}join") for name, rows in found.items()}
            columns = columns_joined(columns, join)
        identity = {
            "source": redact_text(str(source)),
            "sha256": {name or "all": fingerprint(rows, (*TEXTS, *extras)) for name, rows in found.items()},
            "fractions": {"validation": validation_fraction, "test": test_fraction},
            "near_copies": near_copies,
        }
        if earlier := earlier_manifest(folder, identity):
            return earlier
        unique = without_copies(found)
        kept, alike = compared(unique, near_copies, section)
        left_out = number_of(unique) - number_of(kept)
        hint = f"; {section}near_copies=drop leaves {left_out:,} rows out" if left_out else ""
        splits, together = divided(kept, source, validation_fraction, test_fraction, alike, hint)
        begin_folder(folder, identity)
        files = write_splits(folder, {name: written(splits[name]) for name in SPLITS if name in splits})
        facts = {
            **columns_found(found, columns, seen, extras),
            **(given.facts if given else {}),
            "exact copies dropped": number_of(found) - number_of(unique),
            "near copies dropped": left_out,
            **near_copies_found(near_copies, together),
            **groups_found(splits, bool(given) or not own or groups_are_named(source)),
        }
    if quarantine and quarantine.rows:
        files[QUARANTINE] = quarantine.write(folder / QUARANTINE)
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


def compared(
    unique: dict[str, datasets.Dataset], near_copies: str, section: str
) -> tuple[dict[str, datasets.Dataset], dict[str, Numbers] | None]:
    """(the rows that are kept, their numbers by `near_copies_in`); None where they weren't looked at."""
    alike = None if near_copies == "ignore" else near_copies_in(unique)
    if near_copies != "drop":
        return unique, alike
    if alike is None:
        raise DataError(f"{section}near_copies=drop: over {MOST_TEXTS:,} rows aren't compared; give fewer at once")
    return one_of_each(unique, alike)


def number_of(splits: Mapping[str, datasets.Dataset]) -> int:
    return sum(map(len, splits.values()))


def divided(
    unique: Mapping[str, datasets.Dataset],
    source: str,
    validation_fraction: float,
    test_fraction: float,
    alike: Mapping[str, Numbers] | None = None,
    hint: str = "",
) -> tuple[dict[str, datasets.Dataset], dict[str, Numbers] | None]:
    """(the splits that have rows, of each the numbers that `alike` gives its rows; None without it).

    DataError where one of the source's own has none left, or training hasn't; hint: the end of its message.
    """
    for name in unique.keys() - {""}:
        if not len(unique[name]):
            what = f"{source}: every {name} row is a copy of a row in another split; give it rows of its own"
            raise DataError(what + hint)
    if "" not in unique:
        return dict(unique), None if alike is None else dict(alike)
    numbers = alike[""] if alike else None
    try:
        places = places_by_hash(unique[""], validation_fraction, test_fraction, numbers)
    except DataError as error:
        raise DataError(f"{error}{hint}") from error
    rows_in: dict[str, Numbers] = {name: np.flatnonzero(places == name) for name in SPLITS}
    splits = {name: unique[""].select(rows) for name, rows in rows_in.items() if len(rows)}
    return splits, None if numbers is None else {name: numbers[rows_in[name]] for name in splits}


def test_first(splits: Iterable[str]) -> list[str]:
    return sorted(splits, key=("", *SPLITS[::-1]).index)


def without_copies(found: Mapping[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """Each row once, by its texts. Test first: a copy in two splits stays where it would otherwise leak from."""
    seen: set[bytes] = set()
    unique: dict[str, datasets.Dataset] = {}
    for name in test_first(found):
        numbered = enumerate(rows_of(found[name]))
        unique[name] = found[name].select([number for number, _ in unseen(numbered, lambda row: digest(row[1]), seen)])
    return unique


def digest(row: Mapping[str, str]) -> bytes:
    """As good as the texts themselves to tell rows apart by, and 16 bytes."""
    texts = [row[name] for name in TEXTS if name in row]
    return blake2b("\0".join(f"{len(text)} {text}" for text in texts).encode(), digest_size=16).digest()


def near_copies_in(
    splits: Mapping[str, datasets.Dataset], texts_of: Callable[[Any], list[str]] = users_texts
) -> dict[str, Numbers] | None:
    """By split a number for each row, the same for near copies; those of pairs go by their sources, those of
    conversations by what the user says.

    The number is that of the first of them, counted from the first test row. None for too many rows.
    """
    names = test_first(splits)
    if number_of(splits) > MOST_TEXTS:
        return None
    numbers = near_copies_of_many(
        texts_of(batch) for name in names for batch in text_batches(texts_alone(splits[name]))
    )
    return dict(zip(names, np.split(numbers, np.cumsum([len(splits[name]) for name in names])[:-1]), strict=True))


def one_of_each(
    splits: Mapping[str, datasets.Dataset], alike: Mapping[str, Numbers]
) -> tuple[dict[str, datasets.Dataset], dict[str, Numbers]]:
    """(rows without near copies, their numbers): of a split none that has one in the splits before it (test first),
    and of several in it the first. In one split, pairs are such only if their answers are near copies too, or the same.
    """
    answers = near_copies_in(splits, answers_texts) if "tgt_txt" in next(iter(splits.values())).column_names else None
    before: set[int] = set()
    kept: dict[str, Numbers] = {}
    for name in test_first(splits):
        sources, targets = alike[name].tolist(), [0] * len(splits[name])
        if answers:
            known: dict[str, int] = {}
            texts = (text for batch in text_batches(texts_alone(splits[name])) for text in answers_texts(batch))
            numbered = zip(texts, answers[name].tolist(), strict=True)
            targets = [known.setdefault(text, number) for text, number in numbered]
        rows = enumerate(zip(sources, targets, strict=True))
        first = unseen(rows, lambda row: row[1], set())
        kept[name] = np.array([row for row, (source, _) in first if source not in before], np.int64)
        before.update(sources)
    return (
        {name: splits[name].select(rows) for name, rows in kept.items()},
        {name: alike[name][rows] for name, rows in kept.items()},
    )


def columns_found(
    found: Mapping[str, datasets.Dataset], columns: Mapping[str, str], seen: Iterable[str], extras: Sequence[str]
) -> dict[str, Any]:
    """Which columns are kept, by their new names, and which of the source's aren't."""
    present = {column for rows in found.values() for column in rows.column_names}
    texts = [MESSAGES] if MESSAGES in present else TEXTS
    kept = [column for column in (*texts, *extras) if column in present]
    used = {*columns, *(column for column in kept if column not in columns.values())}
    used |= {SYSTEM_COLUMN} if MESSAGES in present else set()  # a message of the conversation
    used |= {*columns_beside(columns)} if "tgt_txt" in present else set()
    return {"columns": kept, "columns not kept": [name for name in seen if name not in used]}


def groups_found(splits: Mapping[str, datasets.Dataset], named: bool) -> dict[str, Any]:
    """How many groups each split has, and how many held-out rows are of a group that training rows are of, too.

    named: whether a label means the same group in every split.
    """
    having = [name for name in SPLITS if name in splits and GROUP in splits[name].column_names]
    labels = {name: set(group_labels(splits[name])) for name in having}
    if not labels:
        return {}
    also = {name: count_of_other_groups(splits[name], splits["train"]) for name in labels if name != "train" and named}
    counts = {name: sum(map(has_group, of_split)) for name, of_split in labels.items()}
    return {"groups": {**counts, "rows of a group in train": also}}


def written(rows: datasets.Dataset) -> Iterator[dict[str, Any]]:
    texts = TEXTS if MESSAGES in rows.column_names else ()  # which messages hold
    for row in rows_of(rows):
        columns = {name: value for name, value in row.items() if name == MESSAGES or name not in texts}
        yield {name: as_list(value) if name in LISTS else value for name, value in columns.items()}


def as_list(text: str) -> Any:
    """The list that a text is in JSON, any other text as it is."""
    try:
        value = json.loads(text) if text.startswith("[") else text
        json.dumps(value, ensure_ascii=False).encode()  # not half a surrogate pair
    except (ValueError, RecursionError):
        return text
    return value


def rows_of(rows: datasets.Dataset) -> Iterator[Row]:
    for batch in text_batches(rows):
        for texts in zip(*batch.values(), strict=True):
            yield dict(zip(batch, texts, strict=True))
