"""Archive → OUT/poems, OUT/quatrains, OUT/couplets (each train, validation, test) and OUT/manifest.json."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...config.verse.han import han_only
from ...system.atomic import write_json
from ...system.jsonl import Row, read_jsonl, write_jsonl
from .dedup import leak_rate, near_copies
from .manifest import MANIFEST, Manifest, files_unchanged, read_manifest, unseen, write_splits
from .poem_archive import ARCHIVE_SHA512, PACKAGE, check_integrity, read_archive
from .poem_cleaning import Poem, Simplifier, clean_poems
from .verse import SPLITS, Split, cut_couplets, cut_quatrains, split_of

RECIPE = "v2"
EXPECTED_POEMS = 309_369  # of the published archive under this recipe; a build that differs is refused
CLEANED = "cleaned.jsonl.gz"  # between the two stages; removed once the poems are written

Progress = Callable[[str, float], None]


def build_corpus(archive: Path, output_dir: Path, report: Progress = lambda step, fraction: None) -> Manifest:
    """Build the corpus and return its manifest; resumes after the last stage whose files are still as written.

    `report` is called with the step's name and the fraction of it done. Rows of poems have src_txt, title,
    author and source (the collection); those of quatrains src_txt; those of couplets src_txt and tgt_txt; those two
    have as their group the number of the poem that they are cut from, in its split.
    No near-copy of a poem is in another split. Raises ValueError for a damaged archive, and when the published
    archive gives another number of poems than EXPECTED_POEMS.
    """
    digest = check_integrity(archive)
    manifest = _earlier_manifest(output_dir, digest)
    if not _verified(manifest, "poems", output_dir):
        if not _verified(manifest, "clean", output_dir):
            manifest["stages"] = {"clean": _timed(_clean, archive, output_dir, report)}
            if check_integrity(archive) != digest:
                raise ValueError(f"{archive} changed while it was read; start again when nothing writes to it any more")
            write_json(output_dir / MANIFEST, manifest)
        manifest["stages"]["poems"] = _timed(_deduplicate, digest, output_dir, report)
        manifest["stages"].pop("derived", None)
        write_json(output_dir / MANIFEST, manifest)
    (output_dir / CLEANED).unlink(missing_ok=True)
    if not _verified(manifest, "derived", output_dir):
        report("cut verse", 0.0)
        rows = {split: read_jsonl(output_dir / f"poems/{split}.jsonl.gz") for split in SPLITS}
        manifest["stages"]["derived"] = _timed(lambda: {"files": write_derived_sets(rows, output_dir)})
        write_json(output_dir / MANIFEST, manifest)
    report("cut verse", 1.0)
    return manifest


def write_derived_sets(poems: Mapping[Split, list[Row]], output_dir: Path) -> Manifest:
    """Cut poems into OUT/quatrains and OUT/couplets; returns rows, bytes and SHA-256 by file.

    Poems of different splits may still have single lines in common, so a cut row goes only into the first of
    test, validation and train that has it, and once.
    """
    files: Manifest = {}
    for name, cut in (("quatrains", _quatrain_rows), ("couplets", _couplet_rows)):
        seen: set[tuple[str, ...]] = set()
        rows = {f"{name}/{split}": unseen(cut(poems[split]), _han_only, seen) for split in reversed(SPLITS)}
        files |= write_splits(output_dir, rows)
    return files


def _clean(archive: Path, output_dir: Path, report: Progress) -> Manifest:
    files, faulty_ids = read_archive(archive, lambda fraction: report("read archive", fraction))
    simplify = Simplifier()
    poems: list[Poem] = []
    counts: Counter[str] = Counter()
    for done, file in enumerate(files, start=1):
        sound = [poem for poem in file.poems if poem.identifier not in faulty_ids]
        kept, dropped = clean_poems(sound, file.source, simplify)
        counts.update({"read": len(file.poems), "listed as faulty": len(file.poems) - len(sound)})
        counts.update(dropped)
        poems.extend(kept)
        report("clean", done / len(files))
    first = {han_only(poem.text): poem for poem in reversed(poems)}
    unique = [poem for poem in poems if first[han_only(poem.text)] is poem]
    counts.update({"cleaned": len(poems), "exact copies": len(poems) - len(unique)})
    rows = ({"src_txt": p.text, "title": p.title, "author": p.author, "source": p.source} for p in unique)
    entry = write_jsonl(output_dir / CLEANED, rows)
    return {"counts": dict(counts), "files": {CLEANED: entry}}


def _deduplicate(digest: str, output_dir: Path, report: Progress) -> Manifest:
    report("deduplicate", 0.0)
    rows = read_jsonl(output_dir / CLEANED)
    report("deduplicate", 0.3)
    roots = near_copies([row["src_txt"] for row in rows])
    kept = [row for index, row in enumerate(rows) if roots[index] == index]
    report("deduplicate", 1.0)
    if digest == ARCHIVE_SHA512 and len(kept) != EXPECTED_POEMS:
        raise ValueError(
            f"{PACKAGE} gave {len(kept)} poems, recipe {RECIPE} gives {EXPECTED_POEMS}: install opencc>=1.4,<2; "
            "after a deliberate change of the recipe, raise RECIPE and set EXPECTED_POEMS"
        )
    by_split = rows_by_split(kept)
    files: Manifest = {}
    for done, split in enumerate(SPLITS, start=1):
        files |= write_splits(output_dir, {f"poems/{split}": by_split[split]})
        report("write poems", done / len(SPLITS))
    characters = Counter(character for row in kept for character in han_only(row["src_txt"]))
    counts = {
        "near copies": len(rows) - len(kept),
        "largest cluster": max(Counter(roots).values(), default=0),
        "poems": len(kept),
        "Han characters": characters.total(),
        "distinct Han characters": len(characters),
        "by source": dict(Counter(row["source"] for row in kept)),
    }
    leak = leak_rate(*([row["src_txt"] for row in by_split[name]] for name in ("train", "test")))
    return {"counts": counts, "expected poems": EXPECTED_POEMS, "leak rate": round(leak, 5), "files": files}


def rows_by_split(rows: Iterable[Row]) -> dict[Split, list[Row]]:
    """Poems in the splits that they belong to, in order."""
    by_split: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    for row in rows:
        by_split[split_of(row["src_txt"])].append(row)
    return by_split


def _quatrain_rows(rows: list[Row]) -> Iterator[Row]:
    for poem, row in enumerate(rows, start=1):
        yield from ({"src_txt": quatrain, "group": str(poem)} for quatrain in cut_quatrains(row["src_txt"]))


def _couplet_rows(rows: list[Row]) -> Iterator[Row]:
    for poem, row in enumerate(rows, start=1):
        for first, second in cut_couplets(row["src_txt"]):
            yield {"src_txt": first, "tgt_txt": second, "group": str(poem)}


def _han_only(row: Row) -> tuple[str, ...]:
    return tuple(han_only(row[name]) for name in ("src_txt", "tgt_txt") if name in row)


def _earlier_manifest(output_dir: Path, digest: str) -> Manifest:
    """The manifest in output_dir if it is of the same archive and recipe, else a fresh one."""
    name = PACKAGE if digest == ARCHIVE_SHA512 else "unpublished"
    fresh: Manifest = {"archive": name, "archive sha512": digest, "recipe": RECIPE, "stages": {}}
    earlier = read_manifest(output_dir)
    same = all(earlier.get(key) == fresh[key] for key in ("archive sha512", "recipe"))
    return earlier if same else fresh


def _verified(manifest: Manifest, stage: str, output_dir: Path) -> bool:
    """Whether the stage is done and its files are still the bytes that it wrote."""
    return files_unchanged(output_dir, manifest["stages"].get(stage, {}).get("files", {}))


def _timed(stage: Callable[..., Manifest], *arguments: Any) -> Manifest:
    start = time.perf_counter()
    return {**stage(*arguments), "seconds": round(time.perf_counter() - start, 1)}
