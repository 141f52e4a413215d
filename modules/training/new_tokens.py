"""A model that gets tokens for what is frequent in rows that it is to be trained on."""

from __future__ import annotations

from ..checkpoint.vocabulary import with_more_tokens
from ..checkpoint.weights import StoredModel
from ..config.commands import VocabularyConfig
from ..config.data import DataConfig
from ..data.splits import load_training_rows
from ..system.paths import expanded
from ..tokenizer.tokenizer import Tokenizer
from .setup import Texts

ADVICE = "train it on those rows before it is used: what the new tokens mean, it has yet to learn"


def with_new_tokens(
    model: StoredModel, tokenizer: Tokenizer, config: VocabularyConfig
) -> tuple[StoredModel, Tokenizer, list[str]]:
    """Both as they are then, and what their users should know; as they were where no rows are named."""
    given = config.path or ""
    if not given:
        return model, tokenizer, []
    paths = [part.strip(" '\"") for part in given[1:-1].split(",")] if given[0] + given[-1] == "[]" else [given]
    rows = [(load_training_rows(DataConfig(path=expanded(path)), seed=42), 1.0) for path in paths]
    longer = tokenizer.extended(Texts(rows), config.new_tokens, config.min_frequency)
    return with_more_tokens(model, tokenizer, longer), longer, [ADVICE]
