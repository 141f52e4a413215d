"""CTranslate2 on the model that moyun exports in Hugging Face's layout."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from .steps import timed_call
from .work import Work


def convert(work: Work) -> Any:
    """ctranslate2/ beside the folder it is made from; before anything is measured."""
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(work.path("huggingface")))
    converter.load_tokenizer = lambda *_, **__: tokenizer_of_all_ids(work)
    converter.convert(str(work.path("ctranslate2")))
    return {}


def tokenizer_of_all_ids(work: Work) -> Any:
    """The exported one with a name for each id that no text has, and for each role: CTranslate2 wants them all."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work.path("huggingface"))
    tokenizer.add_tokens([f"<unused{number}>" for number in range(work.model["vocab_size"] - len(tokenizer))])
    for role in ("bos_token", "eos_token", "unk_token"):
        if getattr(tokenizer, role) is None:
            setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(work.model["vocab_size"] - 1))
    return tokenizer


def open_generator(folder: Path, compute_type: str) -> Any:
    import ctranslate2

    threads = int(os.environ["OMP_NUM_THREADS"])
    return ctranslate2.Generator(str(folder), inter_threads=1, intra_threads=threads, compute_type=compute_type)


def generate(work: Work, rows: int, prompt_tokens: int, new_tokens: int, compute_type: str) -> Any:
    from tokenizers import Tokenizer

    generator = open_generator(work.path("ctranslate2"), compute_type)
    tokenizer = Tokenizer.from_file(str(work.path("huggingface") / "tokenizer.json"))
    prompts = [[tokenizer.id_to_token(token) for token in ids] for ids in work.prompts(rows, prompt_tokens)[1]]
    length = {"max_length": new_tokens, "min_length": new_tokens, "include_prompt_in_result": False}

    def call() -> None:
        found = generator.generate_batch(prompts, sampling_topk=1, max_batch_size=rows, **length)
        assert [len(row.sequences_ids[0]) for row in found] == [new_tokens] * rows

    return timed_call(call, rows * new_tokens)


def first_token(work: Work, compute_type: str) -> Any:
    from tokenizers import Tokenizer

    generator = open_generator(work.path("ctranslate2"), compute_type)
    tokenizer = Tokenizer.from_file(str(work.path("huggingface") / "tokenizer.json"))
    prompt = tokenizer.encode("白日依山尽，").tokens
    found = generator.generate_batch([prompt], max_length=1, sampling_topk=1, include_prompt_in_result=False)
    tokenizer.decode(found[0].sequences_ids[0])
    return {"ended_at": time.time()}
