"""Ids → text one by one, for streaming; `Tokenizer.decode` is the same thing run to the end."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Mapping

# Signs that BERT cuts off a word although people write them without a space on that side.
NO_SPACE_BEFORE = set(".,!?;:%'-/@_")
NO_SPACE_AFTER = set("'-/@_")


class IncrementalDecoder:
    """`push` gives the text that is now certain; all pieces and `flush` together are `Tokenizer.decode` of all ids.

    A character that spans several byte tokens comes out whole with its last one; bytes that aren't UTF-8
    become U+FFFD, as soon as that is certain.
    """

    def __init__(self, token_bytes: Mapping[int, bytes], is_wordpiece: bool) -> None:
        """is_wordpiece: spaces between words must be guessed."""
        self._token_bytes, self._is_wordpiece = token_bytes, is_wordpiece
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._last = ""

    def push(self, token_id: int) -> str:
        """The text that `token_id` adds, "" for a special id or one without a token."""
        piece = self._token_bytes.get(int(token_id), b"")
        return self._join_word(piece.decode()) if self._is_wordpiece else self._utf8.decode(piece)

    @property
    def pending(self) -> bytes:
        """The beginning of a character that isn't complete."""
        return self._utf8.getstate()[0]

    def flush(self) -> str:
        """The rest at the end of a text; the decoder is then ready for another."""
        self._last = ""
        return self._utf8.decode(b"", final=True)

    def _join_word(self, piece: str) -> str:
        continues = piece.startswith("##") and len(piece) > 2
        text = piece[2:] if continues else piece
        if not text:
            return ""
        space = " " if not continues and self._last and _needs_space(self._last, text[0]) else ""
        self._last = text[-1]
        return space + text


def _needs_space(left: str, right: str) -> bool:
    """WordPiece has lost where the spaces were: between Latin words yes, next to Chinese or full-width no."""
    if is_wide(left) or is_wide(right):
        return False
    if left in NO_SPACE_AFTER or unicodedata.category(left) in ("Ps", "Pi"):
        return False
    return right not in NO_SPACE_BEFORE and unicodedata.category(right) not in ("Pe", "Pf")


def is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in ("W", "F") and not "가" <= character <= "힣"
