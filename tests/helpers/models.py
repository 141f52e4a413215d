"""A small decoder with random weights, and where the repository is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modules.checkpoint.model_folder import write_model
from modules.config.model import ModelConfig
from modules.model.decoder import Decoder
from modules.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]


def make_config(vocab_size: int, **changes: Any) -> ModelConfig:
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 96}
    return ModelConfig(vocab_size=vocab_size, **(shape | changes))


def make_decoder(config: ModelConfig, seed: int = 0, spread: float = 5.0) -> Decoder:
    """Random weights, spread out so that logits differ clearly and every part of the network matters."""
    decoder = Decoder(config)
    decoder.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed + 1))
    return decoder.eval()


def save_model(folder: Path, decoder: Decoder, tokenizer: Tokenizer, run: Mapping[str, Any]) -> Path:
    """`write_model` for a decoder in memory."""
    return write_model(folder, decoder.config, decoder.state_dict().items(), tokenizer, run)
