"""What makes tokens likelier or less likely before one is chosen; torch only.

First logit_bias is added, then the repetition penalty divides or multiplies, then the presence and frequency penalties
are taken off. B: rows, V: vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .upload import upload

if TYPE_CHECKING:
    from .batch_rows import Rows


class Penalties:
    """Those of all rows; what no row asks for is neither kept nor computed."""

    def __init__(self, rows: Rows, end_of_text_id: int, vocab_size: int, device: torch.device) -> None:
        def column(values: Sequence[float]) -> Tensor:
            return upload(values, torch.float32, device)[:, None]

        configs = rows.configs
        self.end_of_text_id = end_of_text_id
        self.bias: Tensor | None = None
        if any(config.logit_bias for config in configs):
            self.bias = dense([config.biases for config in configs], vocab_size, device)
        self.written: Tensor | None = None
        """The ids of prompt and text, (B, n)."""
        if any(config.repetition_penalty != 1 for config in configs):
            self.repetition = column([config.repetition_penalty for config in configs])
            longest = max(map(len, rows.ids))  # shorter rows are filled up with a token of theirs: each counts once
            written = [token for ids in rows.ids for token in [*ids, *ids[:1] * (longest - len(ids))]]
            self.written = upload(written, torch.int64, device).unflatten(0, (-1, longest))
        self.counts: Tensor | None = None
        """How often each token was written after the prompt, (B, V)."""
        if any(config.presence_penalty or config.frequency_penalty for config in configs):
            self.presence = column([config.presence_penalty for config in configs])
            self.frequency = column([config.frequency_penalty for config in configs])
            written_of = zip(rows.ids, rows.prompt_lengths, strict=True)
            self.counts = dense([Counter(ids[length:]) for ids, length in written_of], vocab_size, device)

    def append(self, last: Callable[[], Tensor]) -> None:
        """What was written since, an id a row (B,); asked for only if it matters."""
        if self.written is None and self.counts is None:
            return
        ids = last()[:, None]
        if self.written is not None:
            self.written = torch.cat([self.written, ids], 1)
        if self.counts is not None:
            self.counts.scatter_add_(-1, ids, torch.ones_like(ids, dtype=self.counts.dtype))

    def __call__(self, logits: Tensor) -> Tensor:
        """logits (B, V) float32, which stay as they are → as they are after all of them."""
        if self.bias is not None:
            logits = logits + self.bias
        if self.written is not None:
            logits = penalize(logits, self.written, self.repetition, self.end_of_text_id)
        if self.counts is not None:
            logits = logits - self.counts * self.frequency - (self.counts > 0) * self.presence
        return logits


def dense(rows: Sequence[Mapping[int, float]], vocab_size: int, device: torch.device) -> Tensor:
    """Numbers of a few tokens a row as a matrix (B, V), 0 elsewhere."""
    entries = [(row, token, value) for row, values in enumerate(rows) for token, value in values.items()]
    matrix = torch.zeros(len(rows), vocab_size, device=device)
    if entries:
        places, tokens, values = zip(*entries, strict=True)
        matrix[upload(places, torch.int64, device), upload(tokens, torch.int64, device)] = upload(
            values, torch.float32, device
        )
    return matrix


def penalize(logits: Tensor, written: Tensor, penalty: Tensor | float, end_of_text_id: int) -> Tensor:
    """CTRL's repetition penalty (Keskar et al. 2019) for the ids `written` (B, n): ÷ where positive, × where negative.

    End-of-text is never penalized: it may also start a text.
    """
    scores = logits.gather(-1, written)
    penalized = torch.where(scores > 0, scores / penalty, scores * penalty)
    return logits.scatter(-1, written, torch.where(written == end_of_text_id, scores, penalized))
