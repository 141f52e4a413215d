"""The tokens that keep a form of verse: what sampling is told of a form, for a tokenizer of any kind."""

from __future__ import annotations

import codecs
import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ...config.verse.han import han_only
from ...tokenizer.tokenizer import Tokenizer
from .verse_form import MARKS, Characters, Place, VerseForm

UNKNOWN = "[UNK]", "<unk>"
"""Tokens that stand for a character which the vocabulary lacks."""

COMMON_HAN = frozenset(map(chr, (0x3007, *range(0x4E00, 0xA000))))
"""What a vocabulary of bytes is trusted to spell."""

SIGNS = frozenset().union(*MARKS.values())


class VerseTokens:
    """A form in the tokens of a vocabulary.

    A token may be several characters. Where characters are spelt in parts (GPT-2's BPE), it may be a part of one that
    is allowed; where they have tokens of their own, parts aren't needed and never written.
    """

    def __init__(self, tokenizer: Tokenizer, form: str, tones: bool) -> None:
        """ValueError where the vocabulary can't write it."""
        self.token_bytes, self.end_of_text_id = tokenizer.token_bytes, tokenizer.end_of_text_id
        self.vocab_size = tokenizer.vocab_size
        self.single: dict[str, list[int]] = defaultdict(list)
        """Character → the tokens that are it alone."""
        self.longer: dict[str, list[int]] = defaultdict(list)
        """Character → the tokens of several that begin with it."""
        self.parts: list[int] = []
        """Tokens that aren't made of whole characters."""
        self.longest = 1
        """The most characters that a token adds."""
        in_parts = tokenizer.kind == "byte_level_bpe"
        for token, piece in tokenizer.token_bytes.items():
            text = whole(piece)
            if text is None:
                self.parts += [token] * in_parts
            elif text and all(sign in SIGNS or han_only(sign) for sign in text):  # which no ## of WordPiece's is
                (self.single if len(text) == 1 else self.longer)[text[0]].append(token)
            else:
                continue
            self.longest = max(self.longest, len(text) if text else in_parts * -(-len(piece) // 3))
        self.form = VerseForm(form, tones, {*SIGNS, *COMMON_HAN} if in_parts else self.single)
        self.mask = functools.lru_cache(256)(self._mask)
        self.beginnings = functools.lru_cache(256)(beginnings)

    def _mask(self, place: Place, pending: bytes) -> NDArray[np.bool_]:
        found = np.zeros(self.vocab_size, np.bool_)
        allowed = self.form.allowed(place)
        if not allowed:
            found[self.end_of_text_id] = True
            return found
        candidates = list(self.parts)
        if not pending:
            found[[token for character in allowed for token in self.single.get(character, ())]] = True
            candidates += [token for first, tokens in self.longer.items() if first in allowed for token in tokens]
        found[[token for token in candidates if self.take(place, pending + self.token_bytes[token])]] = True
        return found

    def take(self, place: Place, data: bytes) -> tuple[Place, bytes] | None:
        """The place after some bytes, and of these what begins a character; None where the form doesn't allow them."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            text = decoder.decode(data)
        except UnicodeDecodeError:
            return None
        reached: Place | None = place
        for character in text:
            if (reached := reached and self.form.after(reached, character)) is None:
                return None
        assert reached
        rest = decoder.getstate()[0]
        if rest and rest not in self.beginnings(self.form.allowed(reached)):
            return None
        return reached, rest


def whole(piece: bytes) -> str | None:
    """The text of a token; None where it is a part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def beginnings(characters: Characters) -> frozenset[bytes]:
    """What some of these may begin with, in bytes."""
    spelt = map(str.encode, characters)
    return frozenset(code[:length] for code in spelt for length in range(1, len(code)))


@dataclass(frozen=True)
class VerseConstraint:
    """A sampling.Constraint: a form at one place of a text."""

    tokens: VerseTokens
    place: Place
    pending: bytes = b""
    """The beginning of the next character."""
    given_up = False
    """As of a GuidedConstraint."""

    @property
    def least_tokens(self) -> int:
        """That are still to come at least, with the end of the text."""
        return -(-(self.tokens.form.slots - self.place.index) // self.tokens.longest) + 1

    @property
    def allowed(self) -> NDArray[np.bool_]:
        return self.tokens.mask(self.place, self.pending)

    def after(self, token: int) -> VerseConstraint:
        taken = self.tokens.take(self.place, self.pending + self.tokens.token_bytes[token])
        assert taken, f"token {token} isn't allowed here"
        return VerseConstraint(self.tokens, *taken)


MADE: WeakKeyDictionary[Tokenizer, dict[tuple[str, bool], VerseTokens]] = WeakKeyDictionary()


def verse_constraint(tokenizer: Tokenizer, prompt: Sequence[int], form: str, tones: bool) -> VerseConstraint:
    """What a prompt's continuation must keep to.

    An answer begins its verse; any other text goes on with the prompt's. ValueError, which begins with "form", where
    the prompt doesn't fit the form or the vocabulary lacks what it takes.
    """
    made = MADE.setdefault(tokenizer, {})
    if (form, tones) not in made:
        made[form, tones] = VerseTokens(tokenizer, form, tones)
    tokens = made[form, tones]
    begun = "" if tokenizer.answers(prompt) else beginning_of(tokenizer, prompt)
    return VerseConstraint(tokens, tokens.form.read(begun))


def beginning_of(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """A prompt's text; a character that the vocabulary lacks is there as 〇."""
    decoder = tokenizer.incremental_decoder()
    pieces = ["〇" if tokenizer.token(token) in UNKNOWN else decoder.push(token) for token in prompt]
    return "".join(pieces) + decoder.flush()
