"""How near a model's GGUF exports come to torch: poems continued and scored by llama.cpp too, printed as a table.

python -m benchmarks.measure_gguf [MODEL [ROWS]]: models/poems and 50, the first of the bundled test poems.

Each is continued greedily from its first clause. Lead: where the two then first choose different tokens, torch's logit
of its own choice minus its logit of the other's: the logarithm of how many times likelier torch finds its own.
"""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from statistics import median

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor

from modules.checkpoint import formats
from modules.checkpoint.loading import load_model, open_model
from modules.config.base import POEMS, model_folder
from modules.config.generation import GenerationConfig
from modules.data.corpora.folders import SAMPLE
from modules.data.corpora.verse import split_of
from modules.data.encoding import Documents, encode_rows
from modules.evaluation.task_rows import read_task_rows
from modules.model.decoder import Decoder
from modules.model.sampling import generate
from modules.system.jsonl import read_jsonl
from modules.tokenizer.tokenizer import load_tokenizer

from .peer_llama_cpp import LlamaServer

GREEDY = GenerationConfig(max_new_tokens=64, temperature=0)


def written(model: Decoder | LlamaServer, prompts: list[list[int]], end: int) -> list[list[int]]:
    if isinstance(model, LlamaServer):
        return model.tokens(prompts, GREEDY.max_new_tokens)
    found: list[list[int]] = [[] for _ in prompts]
    for row, token in generate(model, prompts, GREEDY, end):
        found[row] += [] if token is None else [token]
    return found


def lead(decoder: Decoder, prompt: list[int], ours: list[int], theirs: list[int], end: int) -> float | None:
    """None: the same tokens. Of two rows the shorter one ended by itself: it chose `end`."""
    for i, (own, other) in enumerate(zip_longest(ours, theirs, fillvalue=end)):
        if own != other:
            logits = decoder(torch.tensor([[*prompt, *ours[:i]]]))[0, -1]
            return float(logits[own] - logits[other])
    return None


def log_probabilities(model: Decoder | LlamaServer, ids: list[int], end: int, size: int) -> Tensor:
    """After each token of a text, (T, V)."""
    if isinstance(model, Decoder):
        return model(torch.tensor([ids]))[0].log_softmax(-1)
    return torch.stack([model.log_probabilities(ids[: i + 1], size, end) for i in range(len(ids))])


def score(decoder: Decoder, model: Decoder | LlamaServer, documents: Documents, end: int) -> tuple[float, float, float]:
    """Perplexity per character; how far log-probabilities are from decoder's (RMS); the spread of decoder's."""
    loss = apart = spread = 0.0
    for i, start in enumerate(documents.offsets[:-1]):
        ids, first = documents.ids[start : documents.offsets[i + 1]].tolist(), documents.prompt_lengths[i]
        here, there = (log_probabilities(m, ids[:-1], end, decoder.config.vocab_size) for m in (decoder, model))
        loss += float(F.nll_loss(there[first - 1 :], torch.tensor(ids[first:]), reduction="sum"))
        apart += float((there - here).square().mean(-1).sum())
        spread += float(here.var(-1).sum())
    characters, positions = (documents.characters + documents.ended).sum(), documents.lengths.sum()
    return math.exp(loss / characters), math.sqrt(apart / positions), math.sqrt(spread / positions)


def exported(folder: Path, dtype: str) -> LlamaServer:
    with tempfile.TemporaryDirectory() as target:
        model = open_model(folder)
        formats.write(Path(target), "gguf", model, load_tokenizer(folder), dtype=dtype)
        positions = model.config.max_position_embeddings
        return LlamaServer(Path(target) / "model.gguf", positions, 1, torch.get_num_threads())  # the file stays mapped


@torch.inference_mode()
def main(folder: Path, count: int) -> None:
    tokenizer, decoder = load_tokenizer(folder), load_model(folder, dtype=torch.float32)
    tanh = Decoder(replace(decoder.config, hidden_act="gelu_new")).eval()
    tanh.load_state_dict(decoder.state_dict())
    models = {"torch": decoder, "torch, GELU's tanh form": tanh}
    models |= {f"llama.cpp, {dtype}": exported(folder, dtype) for dtype in ("float32", "float16", "q8_0")}
    poems = [row["src_txt"] for row in read_jsonl(SAMPLE) if split_of(row["src_txt"]) == "test"][:count]
    rows = datasets.Dataset.from_dict({"src_txt": poems})
    documents = encode_rows(rows, tokenizer, decoder.config.max_position_embeddings, "split")
    prompts, end = [tokenizer.encode_prompt(row.source) for row in read_task_rows(rows)], tokenizer.end_of_text_id
    ours = written(decoder, prompts, end)
    print(f"{len(poems)} poems: {sum(map(len, ours)):,} tokens written, {documents.trained_tokens.sum():,} scored\n")
    print(
        "| | rows equal to torch's | torch's lead: median, largest | logits apart | perplexity |\n|---|---|---|---|---|"
    )
    for name, model in models.items():
        answers = zip(prompts, ours, written(model, prompts, end), strict=True)
        leads = [value for row in answers if (value := lead(decoder, *row, end)) is not None]
        told = f"{median(leads):.4f}, {max(leads):.4f}" if leads else ""
        perplexity, apart, spread = score(decoder, model, documents, end)
        print(f"| {name} | {len(poems) - len(leads)} | {told} | {apart:.4f} | {perplexity:.3f} |", flush=True)
    print(f"\nStandard deviation of torch's logits: {spread:.2f}")


if __name__ == "__main__":
    main(model_folder(sys.argv[1] if sys.argv[1:] else POEMS), int(sys.argv[2]) if sys.argv[2:] else 50)
