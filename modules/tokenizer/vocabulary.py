"""The `tokenizers` objects that moyun's Tokenizer wraps: trained here, BERT's vocab.txt, jieba + BPE, GPT-2's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import tokenizers

TokenizerKind = Literal["character", "bpe", "bert", "jieba_bpe", "byte_level_bpe"]
END_OF_TEXT = "<|endoftext|>"
BYTE_TOKENS = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}  # as `tokenizers` spells a byte
BERT_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@functools.cache
def byte_characters() -> dict[str, int]:
    """The characters under which GPT-2's vocabulary spells the 256 bytes (bytes_to_unicode in its encoder.py)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = sorted(set(range(256)) - set(visible))
    return {chr(byte): byte for byte in visible} | {chr(256 + number): byte for number, byte in enumerate(others)}


@functools.cache
def jieba_segmenter() -> Any:
    """A jieba.Tokenizer of our own: jieba.add_word in the same process must not change a model's ids."""
    try:
        import jieba
    except ImportError as error:
        raise ValueError(
            "this model's tokenizer cuts text with jieba, which is not installed: pip install 'moyun[jieba]'"
        ) from error
    jieba.setLogLevel("WARNING")
    segmenter = jieba.Tokenizer()
    segmenter.initialize()
    return segmenter


def why_not_text(texts: Sequence[object]) -> str | None:
    """What is wrong with the first row that cannot be encoded, None if all can."""
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            return f"row {row} (from 0) is not text but {text!r}; fill it in or drop the row"
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"row {row} (from 0): character {error.start} is half a surrogate pair; remove it"
    return None


def token_bytes(backend: tokenizers.Tokenizer, kind: TokenizerKind, leave_out: set[int]) -> dict[int, bytes]:
    """Id → the bytes that it adds to a text (for WordPiece: the piece with its ##), without `leave_out`."""
    byte_fallback = bool(getattr(backend.model, "byte_fallback", False))
    added = backend.get_added_tokens_decoder()
    table = {}
    for token, token_id in backend.get_vocab(with_added_tokens=True).items():
        if token_id in leave_out:
            continue
        if kind == "byte_level_bpe" and token_id not in added:
            table[token_id] = undisguised(token)
        else:
            table[token_id] = (BYTE_TOKENS.get(token) if byte_fallback else None) or token.encode()
    return table


def undisguised(token: str) -> bytes:
    """The bytes of a byte-level token; of one that isn't spelt in byte_characters, its text."""
    table = byte_characters()
    return bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()
