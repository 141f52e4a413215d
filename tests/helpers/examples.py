"""Rows laid out one by one with plain lists: what encoding them on arrays (data/encoding.py) must come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from modules.tokenizer.tokenizer import Tokenizer


class EncodedExample(NamedTuple):
    """One training row."""

    ids: list[int]
    prompt_length: int
    """The first `prompt_length` ids are not trained on; at least 1, as nothing predicts a row's first id."""
    cut: bool
    """Whether the row was longer than the limit."""


def encode_example(
    tokenizer: Tokenizer, src_txt: str, tgt_txt: str | None = None, limit: int | None = None
) -> EncodedExample:
    """A row to train on: start, `src_txt`, end; or the prompt of `src_txt`, `tgt_txt`, end.

    With `limit`, a longer row is cut to `limit` ids. With a target, the source goes first (its end, down
    to a prompt of a quarter of the limit), then the target's end. A text cut at its end has no
    end-of-text: it did not end there. At least one id remains to train on.
    """
    return encode_examples(tokenizer, [src_txt], None if tgt_txt is None else [tgt_txt], limit)[0]


def encode_examples(
    tokenizer: Tokenizer, src_txts: Sequence[str], tgt_txts: Sequence[str] | None = None, limit: int | None = None
) -> list[EncodedExample]:
    """`encode_example` for many rows; ValueError for a limit that leaves no room for a row."""
    smallest = tokenizer.smallest_limit(pairs=tgt_txts is not None)
    if limit is not None and limit < smallest:
        raise ValueError(f"limit ({limit}) must be at least {smallest}: start, template, text and one more")
    sources = tokenizer.encode_batch(src_txts)
    targets = [None] * len(src_txts) if tgt_txts is None else tokenizer.encode_batch(tgt_txts)
    return [lay_out(tokenizer, *pair, limit) for pair in zip(sources, targets, strict=True)]


def lay_out(tokenizer: Tokenizer, source: list[int], target: list[int] | None, limit: int | None) -> EncodedExample:
    before, after = tokenizer.prompt_parts
    overhead = len(before) + len(after)
    if target is None:
        prompt, text, whole = tokenizer.start_ids, source, len(tokenizer.start_ids) + len(source) + 1
    else:
        kept = source
        if limit is not None:
            kept = source[: max(limit - len(target) - 1, -(-limit // 4), overhead + 1) - overhead]
        prompt, text = [*before, *kept, *after], target
        whole = overhead + len(source) + len(target) + 1
    ids = [*prompt, *text, tokenizer.end_of_text_id][:limit]
    return EncodedExample(ids, max(1, len(prompt)), len(ids) < whole)
