"""A small, fixed sample of a built corpus, such as the ones that the repository bundles under data/.

from modules.poetry.sample import SAMPLE_SIZES, write_sample
write_sample(Path("outputs/corpus"), Path("data/poems.jsonl.gz"), SAMPLE_SIZES)
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ..row_files import Row, read_rows, write_rows
from .verse import SPLITS, Split

SAMPLE_SIZES: dict[Split, int] = {"train": 4400, "validation": 300, "test": 300}
TEST_SAMPLE_SIZES: dict[Split, int] = {"train": 240, "validation": 30, "test": 30}
_SEED = 20160


def write_sample(corpus_dir: Path, path: Path, sizes: dict[Split, int], seed: int = _SEED) -> dict[str, Any]:
    """Write sizes[split] random poems of each split of corpus_dir/poems to `path`, in the corpus's order.

    The split is not stored: split_of(row["src_txt"]) gives it back. With the same corpus, the smaller of two
    samples with one seed is a part of the larger. Returns the file's rows, bytes and SHA-256.
    Raises ValueError when the corpus is not there or has too few poems in a split.
    """
    sample: list[Row] = []
    for split in SPLITS:
        source = corpus_dir / f"poems/{split}.jsonl.gz"
        if not source.is_file():
            raise ValueError(f"{source} is missing: build the corpus first (modules.poetry.build_corpus)")
        rows = read_rows(source)
        size = sizes[split]
        if size > len(rows):
            raise ValueError(f"{source} has {len(rows)} poems, the sample wants {size}: ask for fewer")
        order = random.Random(seed).sample(range(len(rows)), len(rows))
        sample.extend(rows[index] for index in sorted(order[:size]))
    return write_rows(path, sample)
