"""llama.cpp on the GGUF file that moyun exports: its own server (package xllamacpp), asked over HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from .steps import timed_call
from .work import Work


class LlamaServer:
    """Serves one model.gguf for as long as this object lives."""

    def __init__(self, file: Path, context: int = 96, rows: int = 1, threads: int = 1) -> None:
        """context: positions of a row; rows: how many are continued at once."""
        import xllamacpp

        options = xllamacpp.CommonParams()
        options.model.path = str(file)
        options.n_ctx, options.n_parallel = context * rows, rows
        options.warmup, options.verbosity = False, 0
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(options)
        self.ask("/health")  # one that is freed before it has answered anything hangs

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the server answers to a POST of `body`, or to a GET without. RuntimeError where it refuses."""
        content = None if body is None else json.dumps(body).encode()
        request = Request(self.server.listening_address + path, content, {"Content-Type": "application/json"})
        try:
            with urlopen(request) as response:
                return json.load(response)
        except HTTPError as error:
            raise RuntimeError(f"llama.cpp's server: {path}: {error.read().decode()}") from None

    def complete(self, prompts: Sequence[Sequence[int]], new_tokens: int, **options: Any) -> list[dict[str, Any]]:
        """Greedy continuations: for each prompt of ids its "tokens", "content" and "stop_type"."""
        common = {"n_predict": new_tokens, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        answer = self.ask("/completion", {"prompt": [list(ids) for ids in prompts], **common, **options})
        return answer if isinstance(answer, list) else [answer]

    def tokens(self, prompts: Sequence[Sequence[int]], new_tokens: int, **options: Any) -> list[list[int]]:
        """Greedy continuations as ids, without end-of-text."""
        found = self.complete(prompts, new_tokens, **options)
        return [row["tokens"][: -1 if row["stop_type"] == "eos" else None] for row in found]

    def log_probabilities(self, prompt: Sequence[int], vocab_size: int, end_of_text_id: int) -> Tensor:
        """Of every token after the prompt, (V,). End-of-text is written: after part of a character there are none."""
        (row,) = self.complete([prompt], 1, n_probs=vocab_size, logit_bias=[[end_of_text_id, 1e6]], cache_prompt=True)
        result = torch.full((vocab_size,), float("nan"))
        for entry in row["completion_probabilities"][0]["top_logprobs"]:
            result[entry["id"]] = entry["logprob"]
        return result


def generate(work: Work, rows: int, prompt_tokens: int, new_tokens: int, number_format: str) -> Any:
    threads = int(os.environ["OMP_NUM_THREADS"])
    file = work.path(f"gguf-{number_format}") / "model.gguf"
    server = LlamaServer(file, prompt_tokens + new_tokens, rows, threads)
    prompts = work.prompts(rows, prompt_tokens)[1]

    def call() -> None:
        found = server.tokens(prompts, new_tokens, ignore_eos=True)
        assert [len(row) for row in found] == [new_tokens] * rows

    return timed_call(call, rows * new_tokens)
