"""What it saves to read once what prompts have in common: each kind of work with and without, in turns, as a table.

python -m benchmarks.measure_prefix [SIZE [ROUNDS]]: base with random weights and 5; or any of conf/model, or a model
folder. Of a folder's prompts llama.cpp's own prompt cache is measured too, on the GGUF export.

Few-shot: QUESTIONS prompts of the same 8 solved examples (400 tokens) and 32 tokens of their own; 16 new tokens each.
One after the other it is a server's work; together it is that of predict or evaluate. Chat: 6 turns of 40 tokens and
answers of 32; the time to the first token of turns 2 to 6. Choices: 5 answers to each of 16 questions of 100 tokens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from modules.checkpoint.loading import load_for_inference
from modules.config.generation import GenerationConfig
from modules.config.loader import load_config
from modules.evaluation.likelihood import choice_documents, score_documents
from modules.model.decoder import Decoder, build_decoder
from modules.model.decoding import prefix_cache
from modules.model.decoding.prefix_cache import PrefixCache
from modules.model.quantization import prepare_for_inference
from modules.model.sampling import generate, open_batch, start, write

from .measure_gguf import exported

EXAMPLES, QUESTION, QUESTIONS, NEW = 400, 32, 16, 16
TURNS, MESSAGE, ANSWER = 6, 40, 32
CHOICES, CHOICE, SOURCE = 5, 10, 100
KEPT = 8192


class Work:
    """Prompts of random tokens for one model."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.generator = torch.Generator().manual_seed(0)
        examples = self.ids(EXAMPLES)
        self.few_shot = [[*examples, *self.ids(QUESTION)] for _ in range(QUESTIONS)]
        self.questions = [(self.ids(SOURCE), [self.ids(CHOICE) for _ in range(CHOICES)], False) for _ in range(16)]
        self.messages = [self.ids(MESSAGE) for _ in range(TURNS)]

    def ids(self, count: int) -> list[int]:
        return torch.randint(self.decoder.config.vocab_size or 0, (count,), generator=self.generator).tolist()

    def request(self, prompt: list[int], new_tokens: int, prefixes: PrefixCache | None) -> tuple[float, list[int]]:
        """Seconds to the first token, and the text."""
        started, first, text = time.perf_counter(), 0.0, []
        config = GenerationConfig(temperature=0, max_new_tokens=new_tokens)
        batch = open_batch(self.decoder, -1, 1, prefixes)
        with torch.no_grad():
            batch.join(start(self.decoder, [prompt], [config]))
            for _, token in write(batch, batch.advance):
                first = first or time.perf_counter() - started
                text += [] if token is None else [token]
        return first, text

    def one_by_one(self, kept: bool) -> tuple[float, float]:
        """(median seconds to the first token, seconds a request)"""
        prefixes, started = PrefixCache(KEPT) if kept else None, time.perf_counter()
        firsts = [self.request(prompt, NEW, prefixes)[0] for prompt in self.few_shot]
        return median(firsts), (time.perf_counter() - started) / QUESTIONS

    def chat(self, prefixes: PrefixCache | None) -> float:
        """Seconds to the first token, the mean of the later turns."""
        prompt, firsts = list[int](), []
        for message in self.messages:
            prompt += message
            if isinstance(prefixes, PromptsAlone):
                prefixes.prompt = len(prompt)
            first, text = self.request(prompt, ANSWER, prefixes)
            prompt += text
            firsts.append(first)
        return float(np.mean(firsts[1:]))

    def together(self) -> float:
        """Seconds for all questions in one batch."""
        config = GenerationConfig(temperature=0, max_new_tokens=NEW)
        return seconds(lambda: [*generate(self.decoder, self.few_shot, config, -1)])

    def choices(self) -> float:
        return seconds(lambda: score_documents(self.decoder, choice_documents(self.questions)))


class PromptsAlone(PrefixCache):
    """Keeps nothing of what was written."""

    prompt = 0

    def keep(self, ids: list[int], filled: int, read: Callable[[int, int], torch.Tensor]) -> None:  # type: ignore[override]
        super().keep(ids, min(filled, self.prompt), read)


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextmanager
def nothing_shared() -> Iterator[None]:
    saved, prefix_cache.SAVED = prefix_cache.SAVED, sys.maxsize
    try:
        yield
    finally:
        prefix_cache.SAVED = saved


def round_of(work: Work) -> dict[str, tuple[float, float]]:
    """Kind of work → seconds without and with."""
    without, kept = work.one_by_one(False), work.one_by_one(True)
    with nothing_shared():
        alone = work.together(), work.choices()
    plain = work.chat(None)
    return {
        "few-shot, one by one: to the first token": (without[0], kept[0]),
        "few-shot, one by one: a request": (without[1], kept[1]),
        f"few-shot, {QUESTIONS} together: all": (alone[0], work.together()),
        "chat: to the first token of a later turn": (plain, work.chat(PrefixCache(KEPT))),
        "chat, answers not kept": (plain, work.chat(PromptsAlone(KEPT))),
        f"{CHOICES} choices of 16 questions: all": (alone[1], work.choices()),
    }


def of_llama_cpp(folder: Path, work: Work) -> tuple[float, float]:
    """Seconds to the first token of a few-shot prompt, without and with its prompt cache."""
    server = exported(folder, "float32")

    def first_token(cached: bool) -> float:
        asked = [partial(server.complete, [prompt], 1, cache_prompt=cached) for prompt in work.few_shot]
        return median([seconds(call) for call in asked][1:])

    return first_token(False), first_token(True)


def main(name: str, rounds: int) -> None:
    folder = Path(name)
    if folder.is_dir():
        decoder = load_for_inference(folder, "float32")
    else:
        config = load_config("pretrain", [f"model={name}", "model.vocab_size=21128"]).model
        config = replace(config, max_position_embeddings=max(1024, config.max_position_embeddings))
        decoder = prepare_for_inference(build_decoder(config, 0).eval())
    work = Work(decoder)
    work.request(work.few_shot[0], NEW, None)  # the first takes longer
    results = [round_of(work) for _ in range(rounds)]
    print(f"{name}, {torch.get_num_threads()} threads\n\n| | without | with | ratio |\n|---|---|---|---|")
    rows = {kind: [each[kind] for each in results] for kind in results[0]}
    if folder.is_dir():
        rows["llama.cpp, few-shot: to the first token"] = [of_llama_cpp(folder, work) for _ in range(rounds)]
    for kind, pairs in rows.items():
        without, kept = (median(column) * 1000 for column in zip(*pairs, strict=True))
        print(f"| {kind} | {without:.0f} ms | {kept:.0f} ms | {median(a / b for a, b in pairs):.1f} |", flush=True)


if __name__ == "__main__":
    main((sys.argv[1:2] or ["base"])[0], int((sys.argv[2:3] or ["5"])[0]))
