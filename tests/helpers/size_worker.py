"""What workflow/test_sizes.py starts: one piece of work in a process of its own, whose peak memory it writes down.

python -m tests.helpers.size_worker RESULT.json finetune|pretrain KEY=VALUE …     the stage's own command
python -m tests.helpers.size_worker RESULT.json write FOLDER SIZE IDS DTYPE       a model folder of random weights
python -m tests.helpers.size_worker RESULT.json generate FOLDER TOKENS DTYPE
python -m tests.helpers.size_worker RESULT.json forward FOLDER TOKENS
"""

from __future__ import annotations

import json
import re
import runpy
import sys
import time
from pathlib import Path
from typing import Any


def resident(name: str) -> int:
    """Bytes, from the kernel's account of this process (Linux)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found
    return int(found[1]) * 1024


def write(folder: str, size: str, ids: str, dtype: str) -> dict[str, Any]:
    """Streamed, so that the folder may be larger than memory."""
    import torch

    from modules.checkpoint.model_folder import write_model
    from modules.config.loader import load_config
    from modules.model.decoder import fresh_tensors
    from modules.system.jsonl import read_jsonl
    from modules.tokenizer.tokenizer import train_tokenizer
    from tests.helpers.models import ROOT

    config = load_config("pretrain", [f"model={size}", f"model.vocab_size={ids}"]).model
    tokenizer = train_tokenizer(row["src_txt"] for row in read_jsonl(ROOT / "data" / "poems.jsonl.gz"))
    tensors = ((name, tensor.to(getattr(torch, dtype))) for name, tensor in fresh_tensors(config, seed=0))
    write_model(Path(folder), config, tensors, tokenizer, {})
    return {}


def generate(folder: str, tokens: str, dtype: str) -> dict[str, Any]:
    """Greedy; counts ids, as most ids of random weights have no character."""
    started = time.perf_counter()
    from modules.config.generation import GenerationConfig
    from modules.model.sampling import generate as generate_ids
    from modules.tracking import registry  # noqa: F401 (pipeline imports them when it is called)
    from pipelines import pipeline

    imported, before = time.perf_counter(), resident("VmRSS")
    generator = pipeline(model=folder, dtype=dtype)
    loaded = time.perf_counter()
    prompt = generator.tokenizer.encode_prompt("白日依山尽，")
    config = GenerationConfig(max_new_tokens=int(tokens), temperature=0)
    found: list[int] = []
    moments: list[float] = []
    for _, token in generate_ids(generator.decoder, [prompt], config, -1):  # no id ends it
        if token is not None:
            found.append(token)
            moments.append(time.perf_counter())
    account = {"import": imported - started, "load": loaded - imported, "first token": moments[0] - loaded}
    account["each token after"] = (moments[-1] - moments[0]) / (len(moments) - 1)
    dtype = str(generator.decoder.word_embeddings.weight.dtype)
    return {"ids": found, "dtype": dtype, "account": account, "growth": resident("VmHWM") - before}


def forward(folder: str, tokens: str) -> dict[str, Any]:
    import torch

    from modules.checkpoint.loading import load_for_inference

    before, started = resident("VmRSS"), time.perf_counter()
    decoder = load_for_inference(folder)
    loaded = time.perf_counter()
    with torch.no_grad():
        logits = decoder(torch.arange(int(tokens))[None])
    account = {"load": loaded - started, "forward pass": time.perf_counter() - loaded}
    return {
        "shape": list(logits.shape),
        "finite": bool(logits.isfinite().all()),
        "dtype": str(logits.dtype),
        "account": account,
        "growth": resident("VmHWM") - before,
    }


def main(result: str, work: str, *arguments: str) -> None:
    started, found = time.perf_counter(), {}
    try:
        if work in ("finetune", "pretrain"):
            sys.argv[1:] = arguments
            runpy.run_module(f"pipelines.{work}", run_name="__main__")
        else:
            found = {"write": write, "generate": generate, "forward": forward}[work](*arguments)
    finally:
        found |= {"peak": resident("VmHWM"), "seconds": time.perf_counter() - started}
        Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
