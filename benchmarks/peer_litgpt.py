"""litgpt's GPT in a bare loop: a model of the same size (rotary positions in place of learned ones), packed rows."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .steps import timed_steps
from .work import Work


def import_litgpt() -> tuple[Any, Any]:
    """(GPT, Config) without litgpt's own __init__ and scripts, which want a package that moyun doesn't install."""
    found = importlib.util.find_spec("litgpt")
    assert found
    package = ModuleType("litgpt")
    package.__path__ = list(found.submodule_search_locations or [])
    conversion = ModuleType("litgpt.scripts.convert_hf_checkpoint")
    conversion.qkv_reassemble = None  # type: ignore[attr-defined]  # for other people's checkpoints alone
    sys.modules |= {"litgpt": package, "litgpt.scripts": ModuleType("litgpt.scripts"), conversion.__name__: conversion}
    from litgpt.config import Config
    from litgpt.model import GPT

    return GPT, Config


def fresh_model(work: Work, sequence_length: int) -> Any:
    gpt, config = import_litgpt()
    torch.manual_seed(work.seed)
    size = work.model
    model = gpt(
        config(
            name="benchmark",
            block_size=sequence_length,
            n_layer=size["num_hidden_layers"],
            n_embd=size["hidden_size"],
            n_head=size["num_attention_heads"],
            padded_vocab_size=size["vocab_size"],
            vocab_size=size["vocab_size"],
            parallel_residual=False,
        )
    )
    model.lm_head.weight = model.transformer.wte.weight  # tied, like everybody's here
    return model.train()


def train(work: Work, sequence_length: int, batch_tokens: int, steps: int, warmup: int, bfloat16: bool = False) -> Any:
    model = fresh_model(work, sequence_length)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, fused=True)

    def step(block: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(block[:, :-1]).flatten(0, 1), block[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed_steps(blocks(work, sequence_length, batch_tokens, warmup + steps), step, warmup)


def blocks(work: Work, sequence_length: int, batch_tokens: int, steps: int) -> Iterator[tuple[Tensor, int]]:
    rows = batch_tokens // sequence_length
    for block in work.blocks(sequence_length, rows * steps).reshape(steps, rows, -1):
        yield torch.from_numpy(block), rows * sequence_length
