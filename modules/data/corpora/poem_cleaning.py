"""From a poem as printed to plain simplified text: notes and quotation marks out, one form a character."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import opencc

from ...config.verse.han import HAN, PUNCTUATION, han_only
from .poem_archive import RawPoem

SHORTEST, LONGEST = 8, 400  # Han characters of a row kept

# Variants that OpenCC's t2s leaves as they are, each followed by its standard simplified form: those met at
# least ten times in the archive, except where the variant is also a character in its own right (沈, 祇, 遰).
VARIANTS_FILE = Path(__file__).parents[3] / "data" / "variants.txt"

_NOTE = re.compile(r"（[^（）]*）|\([^()]*\)|〔[^〔〕]*〕|【[^【】]*】")
_QUOTATION_MARK = re.compile(r"[“”‘’「」『』《》〈〉〖〗\"']")
_BLANK = re.compile(r"[^\S\n]+")
_UNFINISHED_PARAGRAPH = re.compile(f"(?<=[{HAN}])\n")
_REPEATED_PUNCTUATION = re.compile(f"([{PUNCTUATION}])[{PUNCTUATION}]+")
_FULL_WIDTH = str.maketrans(",?!;:", "，？！；：")
_ALLOWED = re.compile(f"[{HAN}{PUNCTUATION}]+")


class Poem(NamedTuple):
    """A poem in simplified characters, ready to be a row."""

    text: str
    title: str
    author: str
    source: str


def clean_text(text: str) -> str:
    """A poem (paragraphs joined by line feeds) without notes, quotation marks and blanks, on one line.

    A paragraph that ends in a Han character, so without punctuation of its own, is closed with 。
    """
    text = _strip_notes(text)
    text = _BLANK.sub("", _QUOTATION_MARK.sub("", text)).translate(_FULL_WIDTH)
    text = _UNFINISHED_PARAGRAPH.sub("。", text.strip("\n") + "\n").replace("\n", "")
    return _REPEATED_PUNCTUATION.sub(r"\1", text).lstrip(PUNCTUATION)


def reason_to_drop(text: str) -> str | None:
    """Why a cleaned text is no row ("foreign characters", "too short", "too long"), None if it is one."""
    if not _ALLOWED.fullmatch(text):
        return "foreign characters" if text else "too short"
    length = len(han_only(text))
    if length < SHORTEST:
        return "too short"
    return "too long" if length > LONGEST else None


class Simplifier:
    """Traditional to simplified: OpenCC's t2s, then the variants that it leaves."""

    def __init__(self) -> None:
        self._converter = opencc.OpenCC("t2s")
        pairs = VARIANTS_FILE.read_text(encoding="utf-8").split()
        self._variants = str.maketrans({pair[0]: pair[1] for pair in pairs})

    def __call__(self, text: str) -> str:
        return str(self._converter.convert(text)).translate(self._variants)


def clean_poems(poems: list[RawPoem], source: str, simplify: Simplifier) -> tuple[list[Poem], list[str]]:
    """The rows that `poems` of one file give, and for each poem dropped the reason."""
    kept: list[tuple[str, str, str]] = []
    dropped: list[str] = []
    for poem in poems:
        text = clean_text(poem.text)
        reason = reason_to_drop(text)
        if reason:
            dropped.append(reason)
        else:
            kept.append((text, _label(poem.title), _label(_strip_notes(poem.author))))
    # One call a file: OpenCC's cost is mostly that of the call.
    fields = simplify("\n".join(field for row in kept for field in row)).split("\n") if kept else []
    rows = zip(fields[::3], fields[1::3], fields[2::3], strict=True)
    return [Poem(text, title, author, source) for text, title, author in rows], dropped


def _strip_notes(text: str) -> str:
    """Twice, for a note within a note."""
    return _NOTE.sub("", _NOTE.sub("", text))


def _label(text: str) -> str:
    return " ".join(text.split())
