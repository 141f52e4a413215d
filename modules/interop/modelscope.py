"""ModelScope's GPT-3 base and large: pytorch_model.bin, a BERT vocabulary, exact (erf) GELU, epsilon 1e-12.

query_key_value's rows are three blocks: all Q, all K, all V. (modelscope/models/nlp/gpt3/backbone.py)
"""

from __future__ import annotations

from pathlib import Path

from ..tokenizer import Tokenizer
from ..weights import CheckpointError, StoredModel, differences, in_blocks, in_heads, shapes_of, stored
from .gpt3_config import (
    PREFIXES,
    config_json,
    configuration_json,
    read_architecture,
    write_configuration,
    write_tokenizer,
)
from .pickles import read_pickle, write_pickle

WEIGHTS = "pytorch_model.bin"


def read(folder: Path) -> StoredModel:
    """Raises CheckpointError naming file and tensor where the folder isn't whole and sound."""
    path = folder / WEIGHTS
    tensors = stored(read_pickle(path, PREFIXES))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = read_architecture(folder / "config.json", shapes, "gelu")
    expected = shapes_of(config)
    if complaints := list(differences(expected, shapes)):
        raise CheckpointError(f"{path} doesn't fit config.json: " + "; ".join(complaints[:5]))
    heads = config.num_attention_heads
    return StoredModel(config, {name: in_heads(name, tensors[name], heads) for name in expected})


def write(folder: Path, model: StoredModel, tokenizer: Tokenizer) -> None:
    """Raises CheckpointError for a model with the tanh GELU, which ModelScope's class for this layout doesn't have."""
    if model.config.hidden_act != "gelu":
        raise CheckpointError(
            f"a model with hidden_act={model.config.hidden_act} can't be written as format=modelscope, whose GELU is "
            "the exact one: its answers would differ; choose format=megatron"
        )
    heads = model.config.num_attention_heads
    tensors = {}
    for name, tensor in model.weights.items():
        tensors["language_model." + name] = in_blocks(name, tensor.read(), heads)
    write_pickle(folder / WEIGHTS, tensors)
    write_tokenizer(folder, tokenizer)
    length = model.config.max_position_embeddings
    configuration = configuration_json("text-gen-tokenizer", "text-generation", length)
    write_configuration(folder, config_json(model, tokenizer), configuration)
