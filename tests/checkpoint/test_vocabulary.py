"""Embeddings of tokens that a model's vocabulary has got besides."""

from __future__ import annotations

import torch

from modules.checkpoint.vocabulary import EMBEDDING, with_more_tokens
from modules.checkpoint.weights import StoredModel, stored
from modules.config.model import ModelConfig
from modules.model.decoder import build_decoder
from modules.tokenizer.tokenizer import train_tokenizer

CONFIG = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}


def test_a_new_token_starts_as_the_mean_of_what_its_text_was() -> None:
    before = train_tokenizer(["春眠不觉晓，处处闻啼鸟。"] * 3)
    after = before.extended(["春眠好"] * 9, 10, 3)
    padded = before.vocab_size + 2  # rows beyond the tokenizer, as published checkpoints have them
    config = ModelConfig(vocab_size=padded, **CONFIG)
    weights = {name: tensor.half() for name, tensor in build_decoder(config, 1).state_dict().items()}
    model = with_more_tokens(StoredModel(config, stored(weights)), before, after)
    rows, known = model.weights[EMBEDDING].read(), weights[EMBEDDING]
    assert model.config.vocab_size == max(padded, after.vocab_size) == model.weights[EMBEDDING].shape[0] == len(rows)
    assert config.vocab_size == padded
    assert rows.dtype == model.weights[EMBEDDING].dtype == torch.float16
    assert torch.equal(rows[: before.vocab_size], known[: before.vocab_size])
    for text in ("春眠", "好"):  # a merge; a character that had been spelt in bytes
        (new,) = after.encode(text)
        assert new >= before.vocab_size
        assert torch.equal(rows[new], known[before.encode(text)].float().mean(0).half())
    others = [name for name in weights if name != EMBEDDING]
    assert all(torch.equal(model.weights[name].read(), weights[name]) for name in others)
