"""Which characters of a text are Han, and which marks part the lines of verse."""

from __future__ import annotations

import re

PUNCTUATION = "，。！？；：、"
HAN = "〇㐀-䶿一-鿿豈-龎\U00020000-\U0003ffff"  # ranges of a regular-expression class
_NOT_HAN = re.compile(f"[^{HAN}]")


def han_only(text: str) -> str:
    """The Han characters of `text`, in order."""
    return _NOT_HAN.sub("", text)
