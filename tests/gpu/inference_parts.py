"""Parts of the check about writing: pipeline() beside transformers, and the server under 64 clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving_clients import NEW_TOKENS, REQUEST, Server, closed_loop, completion_request
from benchmarks.steps import timed_call
from modules.checkpoint.model_folder import write_model
from modules.config.generation import GenerationConfig
from modules.config.loader import load_config
from modules.model.decoder import meta_decoder
from modules.tokenizer.tokenizer import load_tokenizer
from pipelines import pipeline

from .results import DEVICE, ON_GPU, POEMS, WORK, record
from .training_parts import VOCABULARY, poems

PROMPT, NEW = (64, 64) if ON_GPU else (8, 4)
ROWS = (1, 64) if ON_GPU else (1, 4)
WAYS = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 0.8, "top_p": 0.9}}
CLIENTS, SECONDS = (64, 8.0) if ON_GPU else (8, 1.0)


def decoding(size: str) -> None:
    """Tokens a second in bf16, each prompt and answer of 64 tokens, with random weights."""
    folder = random_model(size)
    generator = pipeline(model=folder, dtype="bfloat16" if ON_GPU else "float32")
    end, tokens = generator.tokenizer.end_of_text_id, generator.tokenizer.encode("".join(poems(500)))
    for rows in ROWS:
        prompts = [tokens[row * PROMPT : (row + 1) * PROMPT] for row in range(rows)]
        for way, parameters in WAYS.items():
            config = GenerationConfig(max_new_tokens=NEW, seed=1, **parameters)
            written = sum(row.tokens for row in generator.write_ids(prompts, config))
            speed = timed_call(partial(generator.write_ids, prompts, config), written)["value"]
            values = {"moyun tokens/s": speed}
            if peer := transformers_call(size, prompts, way == "sampled", end):
                values["transformers tokens/s"] = timed_call(peer, rows * NEW)["value"]
            record("decoding", f"{size}, {rows} row{'s' * (rows > 1)}, {way}", written >= 0.9 * rows * NEW, **values)


def random_model(size: str) -> Path:
    """A folder in bf16; end-of-text is never the likeliest token."""
    config, tokenizer = load_config("pretrain", [f"model={size}"]).model, load_tokenizer(POEMS)
    config.vocab_size = VOCABULARY

    def tensors() -> Any:
        for name, parameter in meta_decoder(config).named_parameters():
            drawn = torch.randn(parameter.shape, device=DEVICE) * 0.02
            if name == "word_embeddings.weight":
                drawn[tokenizer.end_of_text_id] = 0
            yield name, (drawn + 1 if name.endswith("layernorm.weight") else drawn).bfloat16().cpu()

    return write_model(WORK / size, config, tensors(), tokenizer, {})


def transformers_call(size: str, prompts: list[list[int]], sampled: bool, end: int) -> Callable[[], Any] | None:
    """The same shape and work by transformers; None where it isn't installed."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return None
    shape = load_config("pretrain", [f"model={size}"]).model
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=shape.max_position_embeddings, n_embd=shape.hidden_size,
        n_layer=shape.num_hidden_layers, n_head=shape.num_attention_heads,
    )  # fmt: skip
    with torch.device(DEVICE):
        model = GPT2LMHeadModel(config).to(torch.bfloat16 if ON_GPU else torch.float32).eval()
    ids = torch.tensor(prompts, device=DEVICE)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": end}
    options |= {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0} if sampled else {"do_sample": False}
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options).cpu()


def server(folder: str) -> None:
    """Requests of the embedded model from 64 clients who ask again at once; texts are pipeline()'s."""
    served = Server(Path(folder), f"limits.batch_rows={CLIENTS}", f"limits.queue_rows={max(CLIENTS, 32)}")
    try:
        texts, rate = asyncio.run(load(served))
    finally:
        served.process.kill()
    generator = pipeline(model=folder)
    prompt = str(REQUEST["prompt"])
    parameters = {"max_new_tokens": NEW_TOKENS, "temperature": 1.0}
    expected = [generator(prompt, seed=seed, **parameters)["text"].removeprefix(prompt) for seed in range(len(texts))]
    share = sum(a == b for a, b in zip(texts, expected, strict=True)) / len(texts)
    values = {"requests/s": rate, "texts equal pipeline()'s": share}
    record("server", f"{CLIENTS} clients", share == 1 if not ON_GPU else share >= 0.9, **values)


async def load(served: Server) -> tuple[list[str], float]:
    answers = await asyncio.gather(*(served.exchange(completion_request(seed=seed)) for seed in range(CLIENTS)))
    assert all(status == 200 for status, _ in answers), sorted({status for status, _ in answers})
    texts = [json.loads(body)["choices"][0]["text"] for _, body in answers]
    return texts, await closed_loop(served, CLIENTS, SECONDS)
