"""What each row costs a model in nats: the statistics behind perplexity, for intervals and paired tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Decoder
from .encoding import Documents, encode_rows
from .loss import CHUNK
from .measures import Measure, perplexity
from .packing import IGNORED
from .steps import in_order
from .tokenizer import Tokenizer

PERPLEXITY_PER_CHARACTER = "perplexity_per_char"


@torch.inference_mode()
def row_perplexity(
    decoder: Decoder,
    tokenizer: Tokenizer,
    rows: datasets.Dataset,
    max_batch_tokens: int = 8192,
    progress: Callable[[float], None] | None = None,
) -> Measure:
    """Perplexity per character on src_txt, or on tgt_txt given src_txt, kept row by row, in the rows' order.

    Counted in characters, so that models with different tokenizers have statistics of the same shape and meaning.
    """
    decoder.eval()
    documents = encode_rows(rows, tokenizer, decoder.config.max_position_embeddings, "split")
    nll = np.zeros(len(documents))
    steps = in_order(documents, max_batch_tokens)
    device = decoder.word_embeddings.weight.device
    for index in range(len(steps)):
        for batch in steps[index].micro_batches:
            head = partial(token_losses, decoder.head, labels=batch.labels.to(device))
            losses = decoder(batch.input_ids.to(device), batch.document_lengths, head=head).double().cpu()
            nll[batch.documents] = [float(part.sum()) for part in losses.split(batch.document_lengths)]
        if progress:
            progress((index + 1) / len(steps))
    row = row_of(documents)
    predictions = np.asarray(documents.characters, np.int64) + documents.ended
    return perplexity(PERPLEXITY_PER_CHARACTER, np.bincount(row, nll), np.bincount(row, predictions))


def token_losses(head: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """By the head that the decoder also writes with: hidden (1, N, C), weight (V, C), labels (1, N) → (N,) nats."""
    parts = zip(hidden.flatten(0, -2).split(CHUNK), labels.flatten().split(CHUNK), strict=True)
    return torch.cat(
        [
            F.cross_entropy(head(states, weight).float(), targets, ignore_index=IGNORED, reduction="none")
            for states, targets in parts
        ]
    )


def row_of(documents: Documents) -> np.ndarray:
    """The row that each document comes from. Of a row in several pieces the last alone ends with end-of-text."""
    if not documents.rows_split:
        return np.arange(len(documents))
    ended = np.asarray(documents.ended, np.int64)
    found: np.ndarray = ended.cumsum() - ended
    return found
