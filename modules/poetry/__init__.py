"""The corpus of classical Chinese poems: from the published archive to cleaned, deduplicated, split rows."""

from .archive import find_or_fetch_archive
from .build import build_corpus, write_derived_sets
from .verse import cut_couplets, cut_quatrains, split_of

__all__ = [
    "build_corpus",
    "cut_couplets",
    "cut_quatrains",
    "find_or_fetch_archive",
    "split_of",
    "write_derived_sets",
]
