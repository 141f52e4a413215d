"""Public data of tasks other than verse: from published packages, or a user's copy, to split rows of pairs."""

from .build import prepare_corpus
from .corpus import Corpus
from .data_to_text import DATA_TO_TEXT
from .instructions import INSTRUCTIONS
from .question_generation import QUESTION_GENERATION
from .summarization import SUMMARIZATION

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus for corpus in (SUMMARIZATION, DATA_TO_TEXT, QUESTION_GENERATION, INSTRUCTIONS)
}
"""What `prepare source=NAME` can be told, beside sample, full and rows of one's own."""

__all__ = ["CORPORA", "Corpus", "prepare_corpus"]
