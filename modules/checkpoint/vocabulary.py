"""A model whose tokenizer has got more tokens: rows of the embedding for them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..tokenizer.tokenizer import Tokenizer
from .weights import StoredModel, StoredTensor

EMBEDDING = "word_embeddings.weight"


def with_more_tokens(model: StoredModel, before: Tokenizer, after: Tokenizer) -> StoredModel:
    """The model for a tokenizer that `Tokenizer.extended` made. A new token's embedding is the mean of what its text
    was before, so that training starts from what the model knows (Hewitt 2021)."""
    vocab_size = max(model.config.vocab_size or 0, after.vocab_size)

    def read() -> Tensor:
        known = model.weights[EMBEDDING].read()
        rows = torch.zeros(vocab_size, known.shape[1], dtype=known.dtype)
        rows[: len(known)] = known
        new = range(before.vocab_size, after.vocab_size)
        for token_id, parts in zip(new, before.encode_batch([after.token(each) for each in new]), strict=True):
            rows[token_id] = known[parts].float().mean(0).to(known.dtype)
        return rows

    found = model.weights[EMBEDDING]
    embedding = StoredTensor((vocab_size, found.shape[1]), found.dtype, read)
    config = replace(model.config, vocab_size=vocab_size)
    return StoredModel(config, {**model.weights, EMBEDDING: embedding})
