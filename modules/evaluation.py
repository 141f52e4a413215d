"""A model on rows of text: how likely it finds each, and the n-gram floor on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from .ngram import ngram_floors
from .packing import IGNORED
from .steps import in_order
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Likelihoods:
    """What a model makes of each row: its summed negative log-likelihood, and over how much text."""

    nll: np.ndarray
    """(rows,) float64, in nats."""
    tokens: np.ndarray
    """(rows,): labels that were scored, end-of-text included."""
    characters: np.ndarray
    """(rows,): characters that they spell, and one for each end-of-text."""
    rows_cut: int
    """Rows longer than the model's positions whose end wasn't scored (only those with tgt_txt are ever cut)."""

    @property
    def perplexity(self) -> Measure:
        """Per token; not comparable between tokenizers."""
        return perplexity("perplexity", self.nll, self.tokens)

    @property
    def perplexity_per_char(self) -> Measure:
        return perplexity("perplexity_per_char", self.nll, self.characters)


def score(
    decoder: Decoder,
    tokenizer: Tokenizer,
    rows: datasets.Dataset,
    max_batch_tokens: int = 8192,
    progress: Callable[[float], None] | None = None,
) -> Likelihoods:
    """Scores every token of src_txt, or of tgt_txt given src_txt, and each end-of-text; nothing is padded.

    A row that is longer than the model's positions is scored in pieces, and counts as one all the same.
    """
    documents = encode_rows(rows, tokenizer, decoder.config.max_position_embeddings, "split")
    losses = score_documents(decoder, documents, max_batch_tokens, progress)
    row = row_of_document(documents)
    return Likelihoods(
        nll=np.bincount(row, losses, len(rows)),
        tokens=np.bincount(row, documents.trained_tokens, len(rows)),
        characters=np.bincount(row, documents.characters + documents.ended, len(rows)),
        rows_cut=documents.rows_cut,
    )


def row_of_document(documents: Documents) -> np.ndarray:
    """(documents,): only plain text is split, into neighbours of which the last alone ends with end-of-text."""
    if len(documents) == documents.rows:
        return np.arange(documents.rows)
    result: np.ndarray = np.cumsum(documents.ended) - documents.ended
    return result


@torch.inference_mode()
def score_documents(
    decoder: Decoder,
    documents: Documents,
    max_batch_tokens: int = 8192,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """The summed negative log-likelihood of each document's labels, (documents,) float64, in nats."""
    decoder.eval()
    device = decoder.word_embeddings.weight.device
    losses = np.zeros(len(documents))
    steps = in_order(documents, max_batch_tokens)
    for index in range(len(steps)):
        for batch in steps[index].micro_batches:
            head = partial(token_losses, decoder.head, labels=batch.labels.to(device))
            found = decoder(batch.input_ids.to(device), batch.document_lengths, head=head).cpu().numpy()
            document = np.arange(len(batch.documents)).repeat(documents.trained_tokens[batch.documents])
            losses[batch.documents] = np.bincount(document, found, len(batch.documents))
        if progress:
            progress((index + 1) / len(steps))
    return losses


def token_losses(head: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """By the head that the decoder also writes with: hidden (…, C), weight (V, C), labels (…) → (scored labels,)."""
    found = []
    for rows, targets in zip(hidden.flatten(0, -2).split(CHUNK), labels.flatten().split(CHUNK), strict=True):
        trained = targets != IGNORED
        found.append(F.cross_entropy(head(rows[trained], weight).float(), targets[trained], reduction="none"))
    return torch.cat(found)


def ngram_floor(train: datasets.Dataset, test: datasets.Dataset, tokenizer: Tokenizer) -> dict[str, Measure]:
    """{"unigram": …, "bigram": …, "trigram": …}: fitted on train, scored on the same part of test as the model."""
    texts, starts = zip(*texts_of(test, tokenizer), strict=True)
    return ngram_floors((text for text, _ in texts_of(train, tokenizer)), texts, starts)


def texts_of(rows: datasets.Dataset, tokenizer: Tokenizer) -> Iterator[tuple[str, int]]:
    """(the whole text of a row, where the scored part starts)."""
    targets = rows["tgt_txt"] if "tgt_txt" in rows.column_names else None
    if targets is None:
        yield from ((text, 0) for text in rows["src_txt"])
        return
    for source, target in zip(rows["src_txt"], targets, strict=True):
        prompt = (tokenizer.prompt_template or "{src_txt}").replace("{src_txt}", source)
        yield prompt + target, len(prompt)
