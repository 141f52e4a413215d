"""Which tokenizer a training run uses: the start folder's, a given one, or one trained on the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets

from .cache import cache_folder, cached
from .config import TokenizerConfig, TrainingConfig
from .row_tables import fingerprint, text_batches
from .tokenizer import Tokenizer, load_tokenizer, train_tokenizer


def choose_tokenizer(config: TrainingConfig, start: Path | None, rows: datasets.Dataset) -> Tokenizer:
    """With the prompt template that the rows need: none for plain text; for pairs config's, else the tokenizer's."""
    if start:
        tokenizer = load_tokenizer(start)
    elif config.tokenizer.path:
        tokenizer = load_tokenizer(config.tokenizer.path)
    else:
        tokenizer = trained_on(rows, config.tokenizer, cache_folder(config.data.cache_dir))
    template = None
    if "tgt_txt" in rows.column_names:
        template = config.data.prompt_template or tokenizer.prompt_template or "{src_txt}"
    return tokenizer.with_prompt_template(template)


def trained_on(rows: datasets.Dataset, config: TokenizerConfig, cache: Path) -> Tokenizer:
    arguments = {"kind": config.kind, "vocab_size": config.vocab_size, "min_frequency": config.min_frequency}

    def build(folder: Path) -> None:
        train_tokenizer(Texts(rows), **arguments).save(folder)  # type: ignore[arg-type]

    return load_tokenizer(cached(cache, "tokenizer", {"rows": fingerprint(rows), **arguments}, build))


@dataclass
class Texts:
    """All texts of the rows, as often as they are asked for."""

    rows: datasets.Dataset

    def __iter__(self) -> Iterator[str]:
        for batch in text_batches(self.rows):
            for texts in batch.values():
                yield from texts
