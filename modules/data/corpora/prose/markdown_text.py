"""Markdown to plain lines: technical articles (github.com/LCTT/TranslateProject), laws (github.com/LawRefBook/Laws)."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ....config.verse.han import han_only
from .clone_files import files_named, read_text

HAN_SHARE = 0.3
"""Of an article's line: with fewer Han characters it is a command, code, or not translated."""

SHORTEST = 200
"""Han characters of a text that is kept."""

_HEAD = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_FENCE = re.compile(r"\s*(```|~~~)")
_NO_PROSE = re.compile(r"\s*(\[[^\]]*\]:|\||(作者|译者|校对|选题|编译|来源|原文|题图)[:：]|\*?（题图[:：]|本文由\s)")
_FOOT = re.compile(r"\s*via\s*[:：]", re.IGNORECASE)
_LEAD = re.compile(r"[\s>]*(#+\s*|[-*+]\s+|\d{1,3}[.)]\s+)?")
_IMAGE = re.compile(r"!\[[^\[\]]*\](\([^()]*\)|\[[^\[\]]*\])?")
_LINK = re.compile(r"\[([^\[\]]*)\](\([^()]*\)|\s?\[[^\[\]]*\])")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_MARKS = re.compile(r"\*+|`+|~~|(?<!\w)__|__(?!\w)")
_DATE = re.compile(r"^\d{6,8}[\s_-]*")


def read_articles(folders: Sequence[Path], counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """(the original's title, the translation): both may be there more than once."""
    for label, text in _texts(folders, counts, HAN_SHARE):
        yield _DATE.sub("", label), text


def read_statutes(folders: Sequence[Path], counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """(title, text): of a law that was amended each version that there is."""
    for _, text in _texts(folders, counts, 0):
        yield text.partition("\n")[0], text


def _texts(folders: Sequence[Path], counts: Counter[str], share: float) -> Iterator[tuple[str, str]]:
    for file in files_named(folders, ".md"):
        content = read_text(file, counts)
        if content is None:
            continue
        counts["texts read"] += 1
        text = "\n".join(line for line in plain_lines(content) if is_prose(line, share))
        if len(han_only(text)) < SHORTEST:
            counts[f"texts with under {SHORTEST} Han characters"] += 1
        else:
            yield file.stem, text


def is_prose(line: str, share: float) -> bool:
    han = len(han_only(line))
    return han > 0 and han >= share * len("".join(line.split()))


def plain_lines(markdown: str) -> Iterator[str]:
    """Lines of text and headings: no marks, targets of links, images, code or tables, and nothing below an article."""
    fenced = False
    for line in without_comments(_HEAD.sub("", markdown)).splitlines():
        if _FENCE.match(line):
            fenced = not fenced
        elif _FOOT.match(line):
            return
        elif not fenced and not _NO_PROSE.match(line):
            line = line.strip().rstrip("#") if line.lstrip().startswith("#") else line
            text = _LINK.sub(r"\1", _IMAGE.sub("", _LEAD.sub("", line, count=1)))
            text = _MARKS.sub("", " ".join(_TAG.sub("", text).split()))
            if text := " ".join(html.unescape(text).split()):
                yield text


def without_comments(text: str) -> str:
    """Without <!-- … -->; one that isn't closed goes to the end, as in HTML."""
    before, *after = text.split("<!--")
    return before + "".join(part.partition("-->")[2] for part in after)
