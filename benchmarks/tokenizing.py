"""Megabytes of text a second through a tokenizer: moyun's whole way from rows to ids, and other libraries' ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .steps import timed_call
from .work import Work

COPIES = 4
"""Times the bundled rows, about a megabyte: enough to pass what is done once."""

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def rows_of(work: Work) -> tuple[list[str], float]:
    """(texts, their megabytes in UTF-8)"""
    texts = work.texts() * COPIES
    return texts, sum(len(text.encode()) for text in texts) / 1e6


def vocabulary(texts: Iterable[str]) -> list[str]:
    """Of a BERT tokenizer in which every character of the rows is a token."""
    return [*SPECIAL, *sorted({character for text in texts for character in text})]


def rate(work: Work, way: str) -> Any:
    texts, megabytes = rows_of(work)
    entries = {token: index for index, token in enumerate(vocabulary(texts))}
    call = {"tokenizers": with_tokenizers, "transformers": with_transformers, "map": with_map}[way](texts, entries)
    return timed_call(call, megabytes)


def with_tokenizers(texts: list[str], entries: dict[str, int]) -> Callable[[], object]:
    from tokenizers.implementations import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(entries)
    return lambda: [encoding.ids for encoding in tokenizer._tokenizer.encode_batch_fast(texts)]


def with_transformers(texts: list[str], entries: dict[str, int]) -> Callable[[], object]:
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab=entries)
    return lambda: tokenizer(texts)["input_ids"]


def with_map(texts: list[str], entries: dict[str, int]) -> Callable[[], object]:
    """A column of ids on disk, as run_clm makes it; with as many processes as run_clm takes unless told: one."""
    from datasets import Dataset
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab=entries)
    rows = Dataset.from_dict({"src_txt": texts})
    return lambda: rows.map(
        lambda batch: tokenizer(batch["src_txt"]),
        batched=True,
        remove_columns=["src_txt"],
        cache_file_name=str(Path.cwd() / f"map-{time.time_ns()}.arrow"),  # datasets asks for its folder
    )
