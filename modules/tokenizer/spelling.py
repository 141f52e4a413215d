"""Tokens as text, one by one, and where in a text each begins: what OpenAI's `logprobs` shows of them."""

from __future__ import annotations

import codecs

from .tokenizer import Tokenizer


class TokenSpeller:
    """Spells tokens in the order of a text.

    All spellings together are the text, but for two kinds of tokens: one that isn't made of whole characters is spelt
    as OpenAI spells it, `bytes:\\xe6\\x98`, and one that adds nothing to a text has its name, e.g. <|endoftext|>.
    """

    def __init__(self, tokenizer: Tokenizer, at: int = 0) -> None:
        """at: how many characters come before."""
        self.tokenizer, self.at = tokenizer, at
        self.decoder = tokenizer.incremental_decoder()

    def push(self, token_id: int) -> tuple[str, int]:
        """(spelling of the next token, which character of the text it begins in)."""
        piece = self.tokenizer.token_bytes.get(token_id, b"")
        start, pending = self.at, self.decoder.pending
        if pending and piece and not continues(pending, piece):  # what was begun becomes one U+FFFD
            start += 1
        text = self.decoder.push(token_id)
        self.at += len(text)
        if self.tokenizer.kind == "bert" and text:
            return text, start
        return spelling(self.tokenizer, token_id), start


def spelling(tokenizer: Tokenizer, token_id: int) -> str:
    """Of a token by itself."""
    piece = tokenizer.token_bytes.get(token_id, b"")
    if not piece:
        return tokenizer.token(token_id)
    if tokenizer.kind == "bert":
        return tokenizer.decode([token_id])
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def continues(pending: bytes, piece: bytes) -> bool:
    """Whether a token's first byte belongs to the character that was begun."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(pending + piece[:1])
    except UnicodeDecodeError:
        return False
    return True
