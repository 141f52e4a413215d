"""A model that gets tokens for what is frequent in rows that it is to be trained on."""

from __future__ import annotations

import datasets

from ..checkpoint.vocabulary import with_more_tokens
from ..checkpoint.weights import StoredModel
from ..config.commands import VocabularyConfig
from ..config.data import DataConfig
from ..system.paths import expanded
from ..tokenizer.tokenizer import EXTENSIBLE, Tokenizer
from .quarantine import DataError
from .reading.finding import listed
from .splits import choose_places, reader
from .training_texts import Texts

ADVICE = "train it on those rows before it is used: what the new tokens mean, it has yet to learn"


def with_new_tokens(
    model: StoredModel, tokenizer: Tokenizer, config: VocabularyConfig
) -> tuple[StoredModel, Tokenizer, list[str]]:
    """Both as they are then, and what their users should know; as they were where no rows are named. ValueError or
    DataError, which name the key, for rows and models that it can't be done with."""
    if not config.path:
        return model, tokenizer, []
    if tokenizer.kind not in EXTENSIBLE:
        raise ValueError(
            f"vocabulary.path: a {tokenizer.kind} tokenizer can't be extended ({' and '.join(EXTENSIBLE)} can); such a "
            "model takes other text as its vocabulary cuts it, so leave vocabulary.path out"
        )
    paths = listed(config.path) or [config.path]
    if "" in paths or len(set(paths)) < len(paths):
        raise ValueError(f"vocabulary.path={config.path} names nothing, or the same rows twice; name each place once")
    rows = [(training_rows(path), 1.0) for path in paths]
    longer = tokenizer.extended(Texts(rows), config.new_tokens, config.min_frequency)
    added = longer.vocab_size - tokenizer.vocab_size
    rest = "" if added == config.new_tokens else f"; nothing else occurs {config.min_frequency} times"
    told = f"{added:,} tokens are new, {longer.vocab_size:,} in all{rest}"
    return with_more_tokens(model, tokenizer, longer), longer, [told, ADVICE]


def training_rows(path: str) -> datasets.Dataset:
    """All rows but those of a split of their own for validation or test. DataError that says how to make them fit."""
    config = DataConfig(path=expanded(path))
    try:
        place = choose_places(config)["train"]
        return reader(config, None)(place.source, split=place.split)
    except DataError as error:
        remedy = "rows of other columns become such by `python -m pipelines.prepare source=FILE columns.NAME=src_txt`"
        raise DataError(f"vocabulary.path: {error} ({remedy})") from error
