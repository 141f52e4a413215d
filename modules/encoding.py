"""Rows of text → one flat array of token ids, with what must be known of each document to train on and score it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import datasets
import numpy as np

from .tokenizer import EncodedExample, Tokenizer

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Documents:
    """Documents laid end to end. A document of n ids has n - 1 inputs, each with the next id as its label."""

    ids: np.ndarray
    """All ids, (total,) uint16 or int32."""
    offsets: np.ndarray
    """Document i is ids[offsets[i]:offsets[i + 1]]; (documents + 1,) int64."""
    prompt_lengths: np.ndarray
    """The first so many ids of each document are not trained on; (documents,) int32, at least 1."""
    characters: np.ndarray
    """Characters of text that each document's trained ids spell; (documents,) int32."""
    ended: np.ndarray
    """Whether a document ends with end-of-text; (documents,) bool."""
    rows: int
    """Rows of text that went in."""
    rows_cut: int
    """Rows that were longer than the limit and lost their end."""
    rows_split: int
    """Rows that were longer than the limit and became several documents."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> np.ndarray:
        """Inputs of each document, (documents,) int64."""
        return np.diff(self.offsets) - 1

    @property
    def trained_tokens(self) -> np.ndarray:
        """Labels of each document that count in the loss, (documents,) int64."""
        return np.diff(self.offsets) - self.prompt_lengths


def encode_rows(
    rows: datasets.Dataset,
    tokenizer: Tokenizer,
    sequence_length: int,
    over_long: Literal["split", "cut"] = "cut",
) -> Documents:
    """Encodes src_txt (and tgt_txt); no document has more than sequence_length inputs.

    A longer row of plain text is split so that each of its tokens is still predicted exactly once, or cut;
    a row with tgt_txt is always cut, as the second half of a target without its prompt teaches nothing.
    """
    pairs = "tgt_txt" in rows.column_names
    split = over_long == "split" and not pairs
    collected: list[tuple[EncodedExample, int]] = []
    rows_cut = rows_split = 0
    for example, text in encode_in_batches(rows, tokenizer, None if split else sequence_length + 1):
        rows_cut += example.cut
        chunks = list(chunks_of(example, sequence_length))
        rows_split += len(chunks) > 1
        partly = example.cut or not tokenizer.start_ids  # without a start, the first token isn't predicted
        characters = len(tokenizer.decode(example.ids[example.prompt_length :])) if partly else len(text)
        collected.append((chunks[0], characters))
        collected += [(chunk, 0) for chunk in chunks[1:]]  # a row's characters are counted once
    examples = [example for example, _ in collected]
    counts = np.array([len(example.ids) for example in examples], dtype=np.int64)
    small = tokenizer.vocab_size <= np.iinfo(np.uint16).max
    flat = (token for example in examples for token in example.ids)
    return Documents(
        ids=np.fromiter(flat, np.uint16 if small else np.int32, count=int(counts.sum())),
        offsets=np.concatenate([[0], counts.cumsum()]),
        prompt_lengths=np.array([example.prompt_length for example in examples], dtype=np.int32),
        characters=np.array([count for _, count in collected], dtype=np.int32),
        ended=np.array([example.ids[-1] == tokenizer.end_of_text_id for example in examples], dtype=bool),
        rows=len(rows),
        rows_cut=rows_cut,
        rows_split=rows_split,
    )


def encode_in_batches(
    rows: datasets.Dataset, tokenizer: Tokenizer, limit: int | None
) -> Iterator[tuple[EncodedExample, str]]:
    """(encoded row, the text that is trained on), batch by batch so that not all rows are Python lists at once."""
    for batch in rows.iter(ROWS_AT_ONCE):
        sources, targets = batch["src_txt"], batch.get("tgt_txt")
        examples = tokenizer.encode_examples(sources, targets, limit)
        yield from zip(examples, sources if targets is None else targets, strict=True)


def chunks_of(example: EncodedExample, sequence_length: int) -> Iterator[EncodedExample]:
    """Pieces of at most sequence_length inputs; neighbours share one id, the label of one and input of the next."""
    first, *rest = range(0, max(1, len(example.ids) - 1), sequence_length)
    yield example._replace(ids=example.ids[first : first + sequence_length + 1])
    for start in rest:
        ids = list(islice(example.ids, start, start + sequence_length + 1))
        yield EncodedExample(ids, prompt_length=1, cut=False)
