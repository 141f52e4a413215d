"""GGUF, which llama.cpp and all that is built on it read (ollama, LM Studio …): written, not read.

The network is llama.cpp's `gpt2`: query_key_value in three blocks, weights (out, in), a head that is tied where there
is no output.weight. Its GELU is always the tanh form, looked up in a table of float16 numbers.
Sources: llama.cpp's convert_hf_to_gguf.py (GPT2Model), docs of the GGUF format in ggml.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...config.loader import to_yaml
from ...tokenizer.tokenizer import Tokenizer
from ..weights import CheckpointError, StoredModel, StoredTensor, cast, qkv_blocked
from .architecture import GPT3, renamed
from .chat_template import chat_template
from .gguf_vocabulary import Vocabulary, vocabulary

NAMES = {
    "word_embeddings": "token_embd",
    "position_embeddings": "position_embd",
    "transformer.final_layernorm": "output_norm",
    "transformer.layers": "blk",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}

HOLDABLE = GPT3  # what matters in training alone is kept in model.yaml beside the file

NumberFormat = Literal["keep", "float32", "bfloat16", "float16", "q8_0"]

GGML_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""Ours → GGMLQuantizationType's names."""

BLOCK = 32
"""Numbers that share a scale in Q8_0: a row must hold a whole number of them."""


def read(folder: Path) -> StoredModel:
    """Raises CheckpointError: only llama.cpp computes with GGUF's blocks."""
    raise CheckpointError(
        f"{folder} is a GGUF export, which llama.cpp alone computes with: start its own server on it (docs/models.md), "
        "or give the model that the export was made of"
    )


def write(folder: Path, model: StoredModel, tokenizer: Tokenizer, dtype: NumberFormat = "keep") -> list[str]:
    """model.gguf, model.yaml and moyun's tokenizer, into an empty folder; returns notes for whoever exports.

    dtype: of the matrices and word embeddings; position embeddings, biases and LayerNorms are float32, as llama.cpp
    wants them. Tensors go out one by one. Raises CheckpointError for what Q8_0 or float16 cannot hold.
    """
    gguf = library()
    if dtype == "q8_0" and model.config.hidden_size % BLOCK:
        raise CheckpointError(
            f"dtype=q8_0 needs a hidden_size that {BLOCK} divides, not {model.config.hidden_size}; choose dtype=float16"
        )
    tokenizer.save(folder)
    (folder / "model.yaml").write_text(to_yaml(asdict(model.config)), encoding="utf-8")
    vocab, notes = vocabulary(folder, tokenizer, model.config.vocab_size or 0)
    writer = gguf.GGUFWriter(folder / "model.gguf", "gpt2")
    formats = {name: number_format(gguf, name, tensor, dtype) for name, tensor in model.weights.items()}
    add_architecture(writer, model)
    matrices = formats["word_embeddings.weight"].name
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if matrices == "F32" else f"MOSTLY_{matrices}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_vocabulary(gguf, writer, vocab, tokenizer)
    write_tensors(gguf, writer, model, formats)
    if model.config.hidden_act == "gelu":
        notes.append(
            "llama.cpp computes the tanh form of GELU, the model the exact one: logits differ by about 0.3% of their "
            "spread (docs/models.md)"
        )
    return notes


def library() -> Any:
    try:
        import gguf
    except ImportError as error:
        missing = "format=gguf needs the package gguf, which is not installed: pip install 'moyun[gguf]'"
        raise ValueError(missing) from error
    return gguf


def add_architecture(writer: Any, model: StoredModel) -> None:
    config = model.config
    writer.add_name("moyun")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)


def add_vocabulary(gguf: Any, writer: Any, vocab: Vocabulary, tokenizer: Tokenizer) -> None:
    writer.add_tokenizer_model(vocab.model)
    if vocab.pre:
        writer.add_tokenizer_pre(vocab.pre)
    writer.add_token_list(vocab.tokens)
    writer.add_token_types([gguf.TokenType[kind] for kind in vocab.types])
    if vocab.scores:
        writer.add_token_scores(vocab.scores)
    if vocab.merges:
        writer.add_token_merges(vocab.merges)
    if vocab.normalizer:
        writer.add_precompiled_charsmap(vocab.normalizer)
    writer.add_add_space_prefix(vocab.words_begin_with_space)
    writer.add_remove_extra_whitespaces(vocab.words_begin_with_space)
    writer.add_eos_token_id(tokenizer.end_of_text_id)
    writer.add_unk_token_id(vocab.unknown_id)
    if tokenizer.start_ids:
        writer.add_bos_token_id(tokenizer.start_ids[0])
    writer.add_add_bos_token(bool(tokenizer.start_ids))
    writer.add_add_eos_token(False)
    end = vocab.tokens[tokenizer.end_of_text_id]
    writer.add_chat_template(chat_template(tokenizer.for_conversations.prompt_template, "", end))  # llama.cpp starts it


def number_format(gguf: Any, name: str, tensor: StoredTensor, dtype: NumberFormat) -> Any:
    if len(tensor.shape) == 1 or name.startswith("position_embeddings"):
        return gguf.GGMLQuantizationType.F32
    kept = str(tensor.dtype).removeprefix("torch.")
    return gguf.GGMLQuantizationType[GGML_TYPES.get(kept, "F32") if dtype == "keep" else GGML_TYPES[dtype]]


def write_tensors(gguf: Any, writer: Any, model: StoredModel, formats: dict[str, Any]) -> None:
    """Names and sizes first, then the numbers, with one tensor in memory."""
    for name, tensor in model.weights.items():
        shape = gguf.quants.quant_shape_to_byte_shape(tensor.shape, formats[name])
        writer.add_tensor_info(renamed(name, NAMES), shape, np.dtype(np.uint8), int(np.prod(shape)), formats[name])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in model.weights.items():
            if formats[name].name == "F16":
                tensor = cast(name, tensor, torch.float16)
            rows: Tensor = qkv_blocked(name, tensor.read(), model.config.num_attention_heads)
            writer.write_tensor_data(gguf.quants.quantize(rows.float().contiguous().numpy(), formats[name]))
    finally:
        writer.close()
