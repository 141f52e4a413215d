"""The poems that the repository bundles, drawn from the whole corpus: python -m tools.poem_samples CORPUS_FOLDER."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.data.corpora.verse import SPLITS
from modules.system.jsonl import Row, read_jsonl, write_jsonl

DATA = Path(__file__).parent.parent / "data"
SAMPLES = {
    "poems": {"train": 4400, "validation": 300, "test": 300},
    "poems-300": {"train": 240, "validation": 30, "test": 30},
}
"""File in data/ → poems of each split."""

SEED = 20160


def write_sample(corpus: Path, path: Path, sizes: Mapping[str, int], seed: int = SEED) -> dict[str, Any]:
    """Writes sizes[split] random poems of each split of corpus/poems to `path`, in the corpus's order.

    The split isn't stored: split_of(row["src_txt"]) gives it back. With the same corpus, the smaller of two samples
    with one seed is a part of the larger.

    Returns:
        The file's rows, bytes and SHA-256.

    Raises:
        ValueError: the corpus isn't there, or has too few poems in a split.
    """
    sample: list[Row] = []
    for split in SPLITS:
        source = corpus / f"poems/{split}.jsonl.gz"
        if not source.is_file():
            raise ValueError(f"{source} is missing: make the corpus first (python -m pipelines.prepare source=full)")
        rows = read_jsonl(source)
        if sizes[split] > len(rows):
            raise ValueError(f"{source} has {len(rows)} poems, the sample wants {sizes[split]}: ask for fewer")
        order = random.Random(seed).sample(range(len(rows)), len(rows))
        sample.extend(rows[index] for index in sorted(order[: sizes[split]]))
    return write_jsonl(path, sample)


if __name__ == "__main__":
    for name, sizes in SAMPLES.items():
        print(name, write_sample(Path(sys.argv[1]), DATA / f"{name}.jsonl.gz", sizes))
