"""A model on rows of text: perplexity per token and per character, and the n-gram floor on the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Decoder
from .encoding import encode_rows
from .loss import CHUNK
from .metrics import perplexity_per_character
from .ngram import ngram_floors
from .packing import IGNORED
from .steps import in_order
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Scores:
    rows: int
    rows_cut: int
    """Rows longer than the model's positions whose end wasn't scored (only those with tgt_txt are ever cut)."""
    tokens: int
    perplexity: float
    """Per token; not comparable between tokenizers."""
    perplexity_per_char: float


@torch.inference_mode()
def score(
    decoder: Decoder,
    tokenizer: Tokenizer,
    rows: datasets.Dataset,
    max_batch_tokens: int = 8192,
    progress: Callable[[float], None] | None = None,
) -> Scores:
    """Scores every token of src_txt, or of tgt_txt given src_txt, and each end-of-text; nothing is padded."""
    decoder.eval()
    device = decoder.word_embeddings.weight.device
    documents = encode_rows(rows, tokenizer, decoder.config.max_position_embeddings, "split")
    steps = in_order(documents, max_batch_tokens)
    nll, tokens, characters, ends = 0.0, 0, 0, 0
    for index in range(len(steps)):
        for batch in steps[index].micro_batches:
            head = partial(negative_log_likelihood, decoder.head, labels=batch.labels.to(device))
            nll += float(decoder(batch.input_ids.to(device), batch.document_lengths, head=head))
            tokens += batch.trained_tokens
            characters += batch.characters
            ends += batch.ends
        if progress:
            progress((index + 1) / len(steps))
    return Scores(
        rows=len(rows),
        rows_cut=documents.rows_cut,
        tokens=tokens,
        perplexity=math.exp(min(nll / tokens, 700.0)),
        perplexity_per_char=perplexity_per_character(nll, characters, ends),
    )


def negative_log_likelihood(
    head: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor, labels: Tensor
) -> Tensor:
    """Summed, by the head that the decoder also writes with: hidden (…, C), weight (V, C), labels (…) → scalar."""
    total = hidden.new_zeros((), dtype=torch.float32)
    for rows, targets in zip(hidden.flatten(0, -2).split(CHUNK), labels.flatten().split(CHUNK), strict=True):
        trained = targets != IGNORED
        total += F.cross_entropy(head(rows[trained], weight).float(), targets[trained], reduction="sum")
    return total


def ngram_floor(train: datasets.Dataset, test: datasets.Dataset, tokenizer: Tokenizer) -> dict[str, float]:
    """{"unigram": …, "bigram": …, "trigram": …}: fitted on train, scored on the same part of test as the model."""
    texts, starts = zip(*texts_of(test, tokenizer), strict=True)
    return ngram_floors((text for text, _ in texts_of(train, tokenizer)), texts, starts if any(starts) else None)


def texts_of(rows: datasets.Dataset, tokenizer: Tokenizer) -> Iterator[tuple[str, int]]:
    """(the whole text of a row, where the scored part starts)."""
    targets = rows["tgt_txt"] if "tgt_txt" in rows.column_names else None
    if targets is None:
        yield from ((text, 0) for text in rows["src_txt"])
        return
    for source, target in zip(rows["src_txt"], targets, strict=True):
        prompt = (tokenizer.prompt_template or "{src_txt}").replace("{src_txt}", source)
        yield prompt + target, len(prompt)
