"""Rows of text → one flat array of token ids, with what must be known of each document to train on and score it.

What was encoded is kept in files that are mapped into memory: once for the same rows, tokenizer and length.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets
import numpy as np

from ..system.cache import cached
from ..tokenizer.lookup import Counts, Ids, ranges
from ..tokenizer.lost_text import lost_in_texts
from ..tokenizer.prompt_template import prompt_limits
from ..tokenizer.tokenizer import Tokenizer
from .arrow import ArrayFile, fingerprint, text_batches
from .conversations.turn_documents import encode_conversations
from .preferences.pair_documents import encode_pairs
from .reading.column_names import MESSAGES
from .reading.pair_columns import REJECTED


@dataclass(frozen=True)
class Documents:
    """Documents laid end to end. A document of n ids has n - 1 inputs, each with the next id as its label.

    The arrays may be files mapped into memory.
    """

    ids: np.ndarray
    """All ids, (total,) uint16 or int32."""
    offsets: np.ndarray
    """Document i is ids[offsets[i]:offsets[i + 1]]; (documents + 1,) int64."""
    prompt_lengths: np.ndarray
    """The first so many ids of each document are not trained on; (documents,) int32, at least 1."""
    characters: np.ndarray
    """Characters of text that each document's trained ids spell; (documents,) int32."""
    ended: np.ndarray
    """Whether a document ends with end-of-text, (documents,) bool; of a conversation how many answers do, int32."""
    lost_bytes: np.ndarray
    """UTF-8 bytes of the characters that each document's ids should spell and don't; (documents,) int32. A row's stand
    with its first document."""
    rows: int
    """Rows of text that went in."""
    rows_cut: int
    """Rows that were longer than the limit and lost their end."""
    rows_split: int
    """Rows that were longer than the limit and became several documents."""
    tokens_cut: int = 0
    """Ids that the cut rows lost."""
    text_characters: int = 0
    """Of the rows' texts."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """Character of the rows' texts → how often it doesn't come back from its ids."""
    later_prompts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Where in `ids` a prompt that stands after an answer begins and ends: begin, end, begin, end, …, int64. These ids
    aren't trained on either; only conversations have such."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Inputs of each document, (documents,) int64."""
        lengths: np.ndarray = np.diff(self.offsets) - 1
        return lengths

    @functools.cached_property
    def trained_tokens(self) -> np.ndarray:
        """Labels of each document that count in the loss, (documents,) int64."""
        trained: np.ndarray = np.diff(self.offsets) - self.prompt_lengths
        begins, ends = self.later_prompts[::2], self.later_prompts[1::2]
        np.subtract.at(trained, np.searchsorted(self.offsets, begins, "right") - 1, ends - begins)
        return trained

    def lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        """Inputs of each of these documents."""
        lengths: np.ndarray = self.lengths[numbers]
        return lengths

    def ids_of(self, number: int) -> np.ndarray:
        ids: np.ndarray = self.ids[self.offsets[number] : self.offsets[number + 1]]
        return ids

    def later_prompts_of(self, document: int) -> np.ndarray:
        """Where the document's later prompts begin and end, counted from its first id; (prompts, 2)."""
        begin, end = self.offsets[document : document + 2]
        first, last = np.searchsorted(self.later_prompts[::2], [begin, end])
        found: np.ndarray = (self.later_prompts[2 * first : 2 * last] - begin).reshape(-1, 2)
        return found


class EncodedBatch(NamedTuple):
    """Documents of a batch of rows."""

    ids: np.ndarray
    lengths: np.ndarray
    """Ids of each document."""
    prompt_lengths: np.ndarray
    characters: np.ndarray
    ended: np.ndarray
    lost_bytes: np.ndarray
    rows_cut: int
    rows_split: int
    tokens_cut: int
    text_characters: int
    lost: Counter[str]
    later_prompts: np.ndarray = np.zeros(0, np.int64)


def encode_rows(
    rows: datasets.Dataset, tokenizer: Tokenizer, sequence_length: int, over_long: Literal["split", "cut"] = "cut"
) -> Documents:
    """Encodes src_txt (and tgt_txt), or messages; no document has more than sequence_length inputs.

    A longer row of plain text is split so that each of its tokens is still predicted exactly once, or cut;
    a row with tgt_txt is always cut, as the second half of a target without its prompt teaches nothing.
    """
    batches = list(placed(encode_batches(rows, tokenizer, sequence_length, over_long)))
    arrays: dict[str, Any] = {name: np.concatenate([batch[name] for batch in batches]) for name in ARRAYS}
    arrays["offsets"] = np.concatenate([[0], arrays["offsets"]])
    return Documents(rows=len(rows), **arrays, **sums(batches))


def placed(batches: Iterable[EncodedBatch]) -> Iterator[dict[str, Any]]:
    """The fields of each batch, and where its documents and their later prompts stand among the ids of all."""
    total = 0
    for batch in batches:
        offsets = total + batch.lengths.cumsum()
        yield batch._asdict() | {"offsets": offsets, "later_prompts": total + batch.later_prompts}
        total = int(offsets[-1])


def sums(batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What is counted over all batches, by its name in Documents."""
    counts: dict[str, Any] = dict.fromkeys(COUNTS, 0) | {"lost": Counter[str]()}
    for batch in batches:
        for name in counts:
            counts[name] += batch[name]
    return counts


def encode_batches(
    rows: datasets.Dataset, tokenizer: Tokenizer, sequence_length: int, over_long: Literal["split", "cut"]
) -> Iterator[EncodedBatch]:
    """EncodedBatch by batch, so that memory is bounded however many rows there are."""
    split = over_long == "split" and "tgt_txt" not in rows.column_names
    limit = None if split else sequence_length + 1
    smallest = tokenizer.smallest_limit("tgt_txt" in rows.column_names)
    if limit is not None and limit < smallest:
        raise ValueError(
            f"data.sequence_length={sequence_length} (or the model's positions) is too short for these rows: at least "
            f"{smallest - 1} are needed, for start and template, a token of text and one to predict"
        )
    for batch in text_batches(rows):
        if REJECTED in batch:
            yield EncodedBatch(**encode_pairs(batch, tokenizer, sequence_length + 1))
        elif MESSAGES in batch:
            yield EncodedBatch(**encode_conversations(batch[MESSAGES], tokenizer, sequence_length + 1))
        else:
            yield encode_batch(batch["src_txt"], batch.get("tgt_txt"), tokenizer, limit, sequence_length)


def encode_batch(
    sources: list[str], targets: list[str] | None, tokenizer: Tokenizer, limit: int | None, sequence_length: int
) -> EncodedBatch:
    """These rows (`lay_out_rows`), each in pieces of at most sequence_length inputs."""
    source_ids = tokenizer.encode_flat(sources)
    target_ids = None if targets is None else tokenizer.encode_flat(targets)
    flat, lengths, prompt_lengths, whole = lay_out_rows(source_ids, target_ids, tokenizer, limit)
    cut = lengths < whole
    starts = lengths.cumsum() - lengths
    texts = sources if targets is None else targets
    characters = count_trained_characters(texts, flat, starts, lengths, prompt_lengths, cut, tokenizer)
    bytes_lost, lost = lost_in_texts(texts, *(target_ids or source_ids), tokenizer)
    bytes_lost = bytes_lost * (lengths - prompt_lengths) // np.maximum(1, whole - prompt_lengths)  # of what was kept
    if targets is not None:
        lost += lost_in_texts(sources, *source_ids, tokenizer)[1]
    # Neighbouring pieces share one id, the label of one and input of the next.
    pieces = np.maximum(1, -(-(lengths - 1) // sequence_length))
    row_of = np.arange(len(lengths)).repeat(pieces)
    number = ranges(np.zeros_like(pieces), pieces)
    first = number == 0
    sizes = np.minimum(sequence_length + 1, lengths[row_of] - number * sequence_length)
    ids = flat[ranges(starts[row_of] + number * sequence_length, sizes)] if len(row_of) > len(lengths) else flat
    small = tokenizer.vocab_size <= np.iinfo(np.uint16).max
    return EncodedBatch(
        ids=ids.astype(np.uint16 if small else np.int32),
        lengths=sizes,
        prompt_lengths=np.where(first, prompt_lengths[row_of], 1).astype(np.int32),
        characters=np.where(first, characters[row_of], 0).astype(np.int32),  # a row's are counted once
        ended=ids[sizes.cumsum() - 1] == tokenizer.end_of_text_id,
        lost_bytes=np.where(first, bytes_lost[row_of], 0).astype(np.int32),
        rows_cut=int(cut.sum()),
        rows_split=int((pieces > 1).sum()),
        tokens_cut=int((whole - lengths).sum()),
        text_characters=sum(map(len, sources)) + sum(map(len, targets or [])),
        lost=lost,
    )


def lay_out_rows(
    sources: tuple[Ids, Counts], targets: tuple[Ids, Counts] | None, tokenizer: Tokenizer, limit: int | None
) -> tuple[Ids, Counts, Counts, Counts]:
    """Rows as tokenizer/prompt_template.py says: (ids end to end, lengths, prompt lengths, lengths uncut), of each row.

    Each row is five stretches of one pool: before the source, source, after it, target, end-of-text.
    """
    before, after = tokenizer.prompt_parts if targets is not None else (tokenizer.start_ids, [])
    source_ids, source_lengths = sources
    target_ids, target_lengths = targets or (np.zeros(0, np.int32), np.zeros_like(source_lengths))
    stretches = before, source_ids, after, target_ids, [tokenizer.end_of_text_id]
    parts = [np.asarray(stretch, np.int32) for stretch in stretches]
    begins = np.cumsum([0, *map(len, parts[:-1])])
    kept, overhead = source_lengths, len(before) + len(after)
    if targets is not None and tokenizer.source_limit is not None:
        kept = np.minimum(kept, tokenizer.source_limit)
    if targets is not None and limit is not None:
        kept = np.minimum(kept, prompt_limits(limit, target_lengths + 1, overhead) - overhead)
    same = np.ones_like(kept)
    lengths = np.stack([same * len(before), kept, same * len(after), target_lengths, same], axis=1)
    starts = np.tile(begins, (len(kept), 1))
    starts[:, 1] += source_lengths.cumsum() - source_lengths
    starts[:, 3] += target_lengths.cumsum() - target_lengths
    whole = overhead + source_lengths + target_lengths + 1
    if limit is not None:
        lengths = np.clip(limit - (lengths.cumsum(axis=1) - lengths), 0, lengths)
    row_lengths = lengths.sum(axis=1)
    prompt = np.maximum(1, overhead + kept if targets is not None else same * len(before))
    return np.concatenate(parts)[ranges(starts.ravel(), lengths.ravel())], row_lengths, prompt, whole


def count_trained_characters(
    texts: Sequence[str],
    flat: Ids,
    starts: Counts,
    lengths: Counts,
    prompt_lengths: Counts,
    cut: np.ndarray,
    tokenizer: Tokenizer,
) -> Counts:
    """Characters that each row's trained ids spell: the text's, where all of it is trained on."""
    counts = np.fromiter(map(len, texts), np.int64, len(texts))
    # Without a start, nothing predicts the first token.
    for row in np.flatnonzero(cut | (not tokenizer.start_ids)):
        trained = flat[starts[row] + prompt_lengths[row] : starts[row] + lengths[row]]
        counts[row] = len(tokenizer.decode(trained.tolist()))
    return counts


ARRAYS = (*[entry.name for entry in fields(Documents)][:6], "later_prompts")
COUNTS = ("rows_cut", "rows_split", "tokens_cut", "text_characters")


def stored_documents(
    rows: datasets.Dataset, tokenizer: Tokenizer, sequence_length: int, over_long: Literal["split", "cut"], cache: Path
) -> Documents:
    """What encode_rows gives, as arrays on disk: memory is bounded however many rows there are."""
    origin = {
        "rows": fingerprint(rows),
        "tokenizer": tokenizer.fingerprint,
        "sequence_length": sequence_length,
        "over_long": over_long,
        "holds": ",".join((*ARRAYS, *COUNTS, "lost")),
        "tokenizers": version("jieba") if tokenizer.kind == "jieba_bpe" else version("tokenizers"),
    }
    how = rows, tokenizer, sequence_length, over_long
    return open_documents(cached(cache, "tokens", origin, lambda folder: write_documents(folder, *how)))


def open_documents(folder: Path) -> Documents:
    counts = json.loads((folder / "counts.json").read_text())
    return Documents(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}, **counts)


def write_documents(
    folder: Path, rows: datasets.Dataset, tokenizer: Tokenizer, sequence_length: int, over_long: Literal["split", "cut"]
) -> None:
    columns = {name: ArrayFile(folder / f"{name}.npy") for name in ARRAYS}
    columns["offsets"].append(np.zeros(1, np.int64))

    def appended() -> Iterator[dict[str, Any]]:
        for batch in placed(encode_batches(rows, tokenizer, sequence_length, over_long)):
            for name in ARRAYS:
                columns[name].append(batch[name])
            yield batch

    counts = {"rows": len(rows), **sums(appended())}
    for column in columns.values():
        column.close()
    (folder / "counts.json").write_text(json.dumps(counts))
