"""Which tokenizer a training run uses: the start folder's, a given one, or one trained on the rows."""

from __future__ import annotations

from pathlib import Path

import datasets

from .config import TrainingConfig
from .tokenizer import Tokenizer, load_tokenizer, train_tokenizer


def choose_tokenizer(config: TrainingConfig, start: Path | None, rows: datasets.Dataset) -> Tokenizer:
    """With the prompt template that the rows need: none for plain text; for pairs config's, else the tokenizer's."""
    if start:
        tokenizer = load_tokenizer(start)
    elif config.tokenizer.path:
        tokenizer = load_tokenizer(config.tokenizer.path)
    else:
        tokenizer = train_tokenizer(
            (text for column in rows.column_names for text in rows[column]),
            config.tokenizer.kind,
            config.tokenizer.vocab_size,
            config.tokenizer.min_frequency,
        )
    template = None
    if "tgt_txt" in rows.column_names:
        template = config.data.prompt_template or tokenizer.prompt_template or "{src_txt}"
    return tokenizer.with_prompt_template(template)
