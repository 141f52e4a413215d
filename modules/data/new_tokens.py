"""A model that gets tokens for what is frequent in rows that it is to be trained on."""

from __future__ import annotations

from ..checkpoint.vocabulary import with_more_tokens
from ..checkpoint.weights import StoredModel
from ..config.commands import VocabularyConfig
from ..config.data import DataConfig
from ..system.paths import expanded
from ..tokenizer.tokenizer import Tokenizer
from .reading.finding import listed
from .splits import load_training_rows
from .training_texts import Texts

ADVICE = "train it on those rows before it is used: what the new tokens mean, it has yet to learn"


def with_new_tokens(
    model: StoredModel, tokenizer: Tokenizer, config: VocabularyConfig
) -> tuple[StoredModel, Tokenizer, list[str]]:
    """Both as they are then, and what their users should know; as they were where no rows are named."""
    if not config.path:
        return model, tokenizer, []
    paths = listed(config.path) or [config.path]
    rows = [(load_training_rows(DataConfig(path=expanded(path)), seed=42), 1.0) for path in paths]
    longer = tokenizer.extended(Texts(rows), config.new_tokens, config.min_frequency)
    return with_more_tokens(model, tokenizer, longer), longer, [ADVICE]
