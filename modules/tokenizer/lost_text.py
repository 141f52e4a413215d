"""Text that a tokenizer doesn't give back: characters outside of its vocabulary, line ends, upper case, accents.

A model can't foretell what its ids don't hold. Where it is scored by characters, each of these is therefore charged as
if it were spelt in bytes of which each is as likely as any other: about what the tokenizers that lose nothing pay for
a character that they have never seen, so that a vocabulary never gains by what it lacks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .prompt_template import split_template
from .tokenizer import Tokenizer

NATS_A_BYTE = math.log(256)
MARKS = "。：；，！？.:;,!?|"
SHOWN = 5
"""Characters that a message names."""


@dataclass(frozen=True)
class LostText:
    """How often each character of some rows doesn't come back."""

    counts: Mapping[str, int]
    characters: int
    """Of the rows."""

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @property
    def share(self) -> float:
        return self.count / max(1, self.characters)

    def __str__(self) -> str:
        most = sorted(self.counts.items(), key=lambda item: -item[1])
        named = ", ".join(f"{character!r} {times:,}×" for character, times in most[:SHOWN])
        more = ", …" if len(most) > SHOWN else ""
        return f"{self.count:,} of {self.characters:,} characters ({self.share:.2%}): {named}{more}"


def lost_characters(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> Counter[str]:
    """The characters of a text that its ids don't give back, with how often each is missing."""
    return Counter(text) - Counter(tokenizer.decode(ids))


def lost_bytes(lost: Mapping[str, int]) -> int:
    """Of these characters in UTF-8."""
    return sum(times * len(character.encode()) for character, times in lost.items())


def loses(text: str, tokenizer: Tokenizer) -> bool:
    """Whether something of a text doesn't come back."""
    return not tokenizer.is_lossless and bool(lost_characters(text, tokenizer.encode(text), tokenizer))


def lost_named(texts: Sequence[str], tokenizer: Tokenizer) -> str | None:
    """Which characters of some texts don't come back, as a message names them; None where all do."""
    lost = Counter[str]()
    for text in () if tokenizer.is_lossless else texts:
        lost += lost_characters(text, tokenizer.encode(text), tokenizer)
    more = ", …" if len(lost) > SHOWN else ""
    return ", ".join(repr(character) for character, _ in lost.most_common(SHOWN)) + more if lost else None


def vanishes(text: str, tokenizer: Tokenizer) -> bool:
    """Whether nothing of a text comes back, so that it can't part anything: no ids, or only that of what is unknown."""
    return bool(text) and not tokenizer.is_lossless and not tokenizer.decode(tokenizer.encode(text))


def lost_separator(template: str, tokenizer: Tokenizer) -> str | None:
    """The template's text after the source, where the tokenizer loses all of it: then nothing parts the answer."""
    after = split_template(template)[1]
    return after if vanishes(after, tokenizer) else None


def kept_sign(tokenizer: Tokenizer) -> str:
    """A sign that the tokenizer keeps, to part texts by: a punctuation mark, else a character of its vocabulary."""
    pieces = (piece.decode(errors="ignore") for _, piece in sorted(tokenizer.token_bytes.items()))
    signs = (*MARKS, *(piece for piece in pieces if len(piece) == 1 and piece.isprintable()))
    return next((sign for sign in signs if not loses(sign, tokenizer)), "")


def lost_in_texts(
    texts: Sequence[str], ids: np.ndarray, lengths: np.ndarray, tokenizer: Tokenizer
) -> tuple[np.ndarray, Counter[str]]:
    """(UTF-8 bytes that each text loses, all lost characters); ids: of all texts, end to end, lengths: of each text."""
    found, every = np.zeros(len(texts), np.int64), Counter[str]()
    if tokenizer.is_lossless:
        return found, every
    starts = lengths.cumsum() - lengths
    for row, (text, start, length) in enumerate(zip(texts, starts, lengths, strict=True)):
        if tokenizer.own_tokens.issuperset(text):
            continue
        lost = lost_characters(text, ids[start : start + length].tolist(), tokenizer)
        found[row] = lost_bytes(lost)
        every += lost
    return found, every
