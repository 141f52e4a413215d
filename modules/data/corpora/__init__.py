"""Public data to data folders that training reads: classical poems, and the rows of other tasks."""

from __future__ import annotations

from .poem_archive import find_or_fetch_archive
from .poems import build_corpus, write_derived_sets
from .task_corpus import prepare_corpus
from .task_sets import DATA_TO_TEXT, INSTRUCTIONS, QUESTION_GENERATION, SUMMARIZATION, Corpus
from .verse import cut_couplets, cut_quatrains, split_of

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus for corpus in (SUMMARIZATION, DATA_TO_TEXT, QUESTION_GENERATION, INSTRUCTIONS)
}
"""What `prepare source=NAME` can be told, beside sample, full and rows of one's own."""

__all__ = [
    "CORPORA",
    "Corpus",
    "build_corpus",
    "cut_couplets",
    "cut_quatrains",
    "find_or_fetch_archive",
    "prepare_corpus",
    "split_of",
    "write_derived_sets",
]
