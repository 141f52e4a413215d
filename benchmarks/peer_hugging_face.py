"""Hugging Face transformers: GPT2LMHeadModel of the same size, in a bare loop (its Trainer only adds to that)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .steps import timed_call, timed_steps
from .work import Work

Layout = Literal["padded", "longest", "packed"]
"""Rows padded to the full length, or to the longest beside them; or laid end to end and cut, as run_clm does."""

IGNORED = -100


def fresh_model(work: Work) -> Any:
    """The same mathematics as moyun's, dropout included; without the cache, which only costs here."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(work.seed)
    model = work.model
    config = GPT2Config(
        vocab_size=model["vocab_size"],
        n_positions=model["max_position_embeddings"],
        n_embd=model["hidden_size"],
        n_layer=model["num_hidden_layers"],
        n_head=model["num_attention_heads"],
        activation_function=model["hidden_act"],
        resid_pdrop=model["hidden_dropout_prob"],
        embd_pdrop=model["hidden_dropout_prob"],
        attn_pdrop=model["attention_probs_dropout_prob"],
        use_cache=False,
    )
    return GPT2LMHeadModel(config).train()


def train(
    work: Work,
    layout: Layout,
    sequence_length: int,
    batch_tokens: int,
    steps: int,
    warmup: int,
    bfloat16: bool = False,
) -> Any:
    """bfloat16: under autocast, as its Trainer does with bf16=True."""
    model = fresh_model(work)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, fused=True)

    def step(batch: dict[str, Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed_steps(batches(work, layout, sequence_length, batch_tokens, warmup + steps), step, warmup)


def batches(
    work: Work, layout: Layout, sequence_length: int, batch_tokens: int, steps: int
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """(what the model takes, tokens that it is trained on without padding)"""
    if layout == "packed":
        rows = batch_tokens // sequence_length
        for block in work.blocks(sequence_length, rows * steps).reshape(steps, rows, -1):
            ids = torch.from_numpy(block[:, :-1].copy())
            yield {"input_ids": ids, "labels": ids}, ids[:, 1:].numel()
        return
    for documents in work.rows_of(sequence_length, batch_tokens, steps):
        documents = [document[:sequence_length] for document in documents]
        longest = max(map(len, documents))
        yield pad(documents, sequence_length if layout == "padded" else longest), sum(len(d) - 1 for d in documents)


def pad(documents: list[np.ndarray], length: int) -> dict[str, Tensor]:
    input_ids = torch.zeros(len(documents), length, dtype=torch.int64)
    labels = torch.full_like(input_ids, IGNORED)
    for row, document in enumerate(documents):
        input_ids[row, : len(document)] = labels[row, : len(document)] = torch.from_numpy(document)
    return {"input_ids": input_ids, "labels": labels, "attention_mask": (labels != IGNORED).long()}


def first_step(work: Work, sequence_length: int, batch_tokens: int) -> Any:
    """From nothing to the end of the first step, as run_clm goes: rows, tokenizer, tokens, model, optimizer."""
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast

    rows = load_dataset("json", data_files=str(work.path("rows.jsonl")), split="train", cache_dir=".")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work.path("huggingface"))
    rows.map(lambda batch: {"ids": tokenizer(batch["src_txt"])["input_ids"]}, batched=True, remove_columns=["src_txt"])
    ended = train(work, "packed", sequence_length, batch_tokens, steps=1, warmup=0)["ended_at"]
    return {"ended_at": ended}


def generate(work: Work, rows: int, prompt_tokens: int, new_tokens: int, dtype: str = "float32") -> Any:
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(work.path("huggingface"), dtype=getattr(torch, dtype)).eval()
    ids = torch.tensor(work.prompts(rows, prompt_tokens)[1])
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}

    def call() -> None:
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **length)
        assert found.shape == (rows, prompt_tokens + new_tokens), found.shape

    return timed_call(call, rows * new_tokens)


def first_token(work: Work) -> Any:
    """From nothing to a token of text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(work.path("huggingface")).eval()
    tokenizer = AutoTokenizer.from_pretrained(work.path("huggingface"))
    ids = torch.tensor([tokenizer("白日依山尽，")["input_ids"]])
    tokenizer.decode(model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)[0])
    return {"ended_at": time.time()}
