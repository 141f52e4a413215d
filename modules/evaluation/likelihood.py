"""How likely a model finds texts: perplexity of rows, and multiple choice (Brown et al. 2020, section 2.4).

In multiple choice nothing is generated: the choice that the model finds likeliest after the prompt is its answer, by
the sum of its tokens' log-probabilities, or by that sum divided by the choice's characters, so that long choices aren't
at a disadvantage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from ..checkpoint.loading import load_verified
from ..data.conversations.message_rows import questions_of
from ..data.encoding import Documents, encode_rows
from ..data.packing import MicroBatch, StepDataset, split_step
from ..model.attention import Layout
from ..model.decoder import Decoder
from ..model.decoding.prefix_cache import beginnings
from ..model.linear import CHUNK
from ..model.loss import IGNORED
from ..tokenizer.lost_text import NATS_A_BYTE, LostText, lost_in_texts
from ..tokenizer.prompt_template import Message, fit_prompt
from ..tokenizer.tokenizer import Tokenizer
from .statistics import Metric, mean, perplexity, with_clusters
from .task_rows import groups_of, read_choices

OnProgress = Callable[[float], None] | None
"""Called with the share that is done."""


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
    """Rows with tgt_txt that are longer than the model's positions, whose end wasn't scored."""
    lost_bytes: np.ndarray
    """(rows,): of the characters that the ids should spell and don't."""
    lost: LostText
    """Of the rows' texts."""
    groups: list[str] | None = None
    """Of the rows, where they have a column of that name."""

    @property
    def perplexity(self) -> Metric:
        """Per token; not comparable between tokenizers."""
        return perplexity("perplexity", self.nll, self.tokens)

    @property
    def perplexity_per_char(self) -> Metric:
        """Characters that the tokenizer loses are charged for (tokenizer/lost_text.py), and their rows marked."""
        charged = self.nll + self.lost_bytes * NATS_A_BYTE
        found = perplexity("perplexity_per_char", charged, self.characters)
        found = with_clusters(found, self.groups)
        return replace(found, unread=self.lost_bytes > 0) if self.lost_bytes.any() else found


def score(
    decoder: Decoder, tokenizer: Tokenizer, rows: Dataset, max_batch_tokens: int = 8192, progress: OnProgress = None
) -> Likelihoods:
    """Scores every token of src_txt, or of tgt_txt given src_txt, or of each of the assistant's messages given what was
    said before, and each end-of-text; nothing is padded.

    A row that is longer than the model's positions is scored in pieces, and counts as one all the same.
    """
    documents = encode_rows(rows, tokenizer, decoder.config.max_position_embeddings, "split")
    losses = score_documents(decoder, documents, max_batch_tokens, progress)
    row = np.arange(documents.rows)
    # Plain text is split, into neighbours of which the last alone has an end-of-text.
    if len(documents) != documents.rows:
        row = np.cumsum(documents.ended) - documents.ended
    return Likelihoods(
        nll=np.bincount(row, losses, len(rows)),
        tokens=np.bincount(row, documents.trained_tokens, len(rows)),
        characters=np.bincount(row, documents.characters + documents.ended, len(rows)),
        rows_cut=documents.rows_cut,
        lost_bytes=np.bincount(row, documents.lost_bytes, len(rows)),
        lost=LostText(documents.lost, documents.text_characters),
        groups=groups_of(rows),
    )


def lost_of_rows(rows: Dataset, tokenizer: Tokenizer, positions: int) -> LostText:
    """What `score` will tell of the characters that don't come back."""
    documents = encode_rows(rows, tokenizer, positions, "split")
    return LostText(documents.lost, documents.text_characters)


@torch.inference_mode()
def score_documents(
    decoder: Decoder,
    documents: Documents,
    max_batch_tokens: int = 8192,
    progress: OnProgress = None,
    sizes: np.ndarray | None = None,
) -> np.ndarray:
    """The summed negative log-likelihood of each document's labels, (documents,) float64, in nats.

    What prompts of a batch have in common is read once.
    sizes: of each what it is sorted by in place of its length, which isn't larger; those of equal size stay together.
    """
    decoder.eval()
    device = decoder.word_embeddings.weight.device
    losses = np.zeros(len(documents))
    plan = split_step(np.arange(len(documents)), documents.lengths if sizes is None else sizes, max_batch_tokens)
    steps = StepDataset(documents, plan, max_batch_tokens)
    for index in range(len(steps)):
        for batch in steps[index].micro_batches:
            input_ids, labels, lengths = left_to_read(decoder, documents, batch)
            head = partial(token_losses, decoder.head, labels=labels.to(device))
            found = decoder(input_ids.to(device), lengths, head=head).cpu().numpy()
            document = np.arange(len(batch.documents)).repeat(documents.trained_tokens[batch.documents])
            losses[batch.documents] = np.bincount(document, found, len(batch.documents))
        if progress:
            progress((index + 1) / len(steps))
    return losses


def left_to_read(
    decoder: Decoder, documents: Documents, batch: MicroBatch
) -> tuple[Tensor, Tensor, Sequence[int] | Layout]:
    """Ids, labels and lengths of a batch, without what several of its prompts begin with: that is read here, once."""
    lengths = batch.layout.lengths
    most = np.minimum(documents.prompt_lengths[batch.documents], lengths) - 1  # the last one is asked what comes next
    before: list[Tensor | None] = []
    if decoder.compute_dtype is None:  # else keys and values that are kept would have another format than these
        before = beginnings(decoder, [ids.tolist() for ids in batch.input_ids[0].split(lengths)], most.tolist())
    if not any(kv is not None for kv in before):
        return batch.input_ids, batch.labels, lengths
    skipped = torch.tensor([0 if kv is None else kv.shape[3] for kv in before])
    left = batch.layout.positions >= skipped.repeat_interleave(torch.tensor(lengths))
    layout = Layout.of((torch.tensor(lengths) - skipped).tolist(), decoder.word_embeddings.weight.device, before)
    return batch.input_ids[:, left], batch.labels[:, left], layout


def token_losses(head: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """By the head that the decoder also writes with: hidden (…, C), weight (V, C), labels (…) → (scored labels,)."""
    found = []
    for rows, targets in zip(hidden.flatten(0, -2).split(CHUNK), labels.flatten().split(CHUNK), strict=True):
        trained = targets != IGNORED
        found.append(F.cross_entropy(head(rows[trained], weight).float(), targets[trained], reduction="none"))
    return torch.cat(found)


ACCURACIES = ("choice_accuracy", "choice_accuracy_per_char")
ROWS = 512
"""How many rows' choices are encoded at once, so that memory doesn't grow with the rows."""


def choice_accuracy(
    decoder: Decoder, tokenizer: Tokenizer, rows: Dataset, max_batch_tokens: int = 8192, progress: OnProgress = None
) -> tuple[list[Metric], int]:
    """(choice_accuracy and choice_accuracy_per_char, rows whose source was cut). DataError as of read_choices."""
    questions = read_choices(rows)
    limit = decoder.config.max_position_embeddings
    right: list[tuple[bool, bool]] = []
    cut = 0
    for start in range(0, len(questions), ROWS):
        some = questions[start : start + ROWS]
        part = rows.select(range(start, start + len(some)))
        asked = zip(questions_of(part), some, strict=True)
        encoded = [encode_question(question, choices, tokenizer, limit) for question, (choices, _) in asked]
        cut += sum(shortened for _, _, shortened in encoded)
        documents = choice_documents(encoded)
        sizes = np.repeat([len(prompt) + max(map(len, ids)) for prompt, ids, _ in encoded], [len(c) for c, _ in some])
        losses = iter(score_documents(decoder, documents, max_batch_tokens, sizes=sizes))
        for choices, answer in some:
            found = np.array([next(losses) for _ in choices]) + NATS_A_BYTE * unspelt(choices, tokenizer)
            lengths = np.array([len(choice) for choice in choices])
            right.append((found.argmin() == answer, (found / lengths).argmin() == answer))
        if progress:
            progress(len(right) / len(questions))
    return [mean(name, column) for name, column in zip(ACCURACIES, np.array(right, float).T, strict=True)], cut


def unspelt(choices: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """(choices,): UTF-8 bytes of the characters that the tokenizer loses of each."""
    return lost_in_texts(choices, *tokenizer.encode_flat(choices), tokenizer)[0]


def chance(rows: Dataset) -> list[Metric]:
    """The accuracy of guessing among the choices."""
    expected = [1 / len(choices) for choices, _ in read_choices(rows)]
    return [mean(name, expected) for name in ACCURACIES]


Question = tuple[list[int], list[list[int]], bool]
"""(ids of the prompt, ids of each choice, whether the source was cut)"""


def encode_question(source: str | Sequence[Message], choices: list[str], tokenizer: Tokenizer, limit: int) -> Question:
    """Where the longest choice doesn't fit, the source loses its end, the same for all choices; a conversation loses
    its earliest turns first."""
    ids = tokenizer.encode_batch(choices)
    prompt, cut = fit_prompt(source, tokenizer, limit + 1 - max(map(len, ids)))
    return prompt, ids, cut


def choice_documents(questions: Sequence[Question]) -> Documents:
    """A document a choice: the prompt, then the choice, without an end; what is scored is the choice alone."""
    documents = [(prompt, choice) for prompt, choices, _ in questions for choice in choices]
    prompts = np.array([len(prompt) for prompt, _ in documents], np.int32)
    lengths = prompts + np.array([len(choice) for _, choice in documents])
    return Documents(
        ids=np.array([token for pair in documents for part in pair for token in part], np.int32),
        offsets=np.concatenate([[0], lengths.cumsum()]),
        prompt_lengths=prompts,
        characters=np.zeros(len(documents), np.int32),
        ended=np.zeros(len(documents), bool),
        lost_bytes=np.zeros(len(documents), np.int32),
        rows=len(documents),
        rows_cut=0,
        rows_split=0,
    )


def score_folder(
    folder: Path,
    rows: Dataset,
    max_batch_tokens: int,
    dtype: str = "auto",
    progress: Callable[[str, float], None] | None = None,
) -> Likelihoods:
    """What the model in a folder makes of each row. progress: is told "likelihood" and the share that is done."""
    decoder, tokenizer = load_verified(folder, dtype)
    return score(decoder, tokenizer, rows, max_batch_tokens, partial(progress, "likelihood") if progress else None)
