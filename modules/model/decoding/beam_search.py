"""Beam search: of each row the likeliest continuations are kept side by side, and the best that has ended is its text.

As transformers does it (generate(num_beams=n, do_sample=False), early_stopping=False). What a row becomes depends on
its prompt and the parameters alone. B: rows, K: beams of each, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention import attention_kernels
from ..decoder import Decoder
from ..kv_cache import KVCache
from ..sampling import prefill
from .batch_rows import Rows
from .constraints import mask
from .penalties import Penalties
from .token_scores import NOT_NUMBERS
from .upload import upload


class Hypothesis(NamedTuple):
    """A text that has ended."""

    score: float
    """Its tokens' log-probability ÷ their number to the power of length_penalty."""
    ids: list[int]


class Candidate(NamedTuple):
    score: float
    beam: int
    token: int


@dataclass
class Search:
    """The beams of one row."""

    ids: list[list[int]]
    """What each beam has written."""
    scores: list[float]
    remaining: int
    ends: Callable[[list[int]], bool]
    """Whether a text that was written ends by itself."""
    length_penalty: float
    finished: list[Hypothesis] = field(default_factory=list)
    """The best so far, best first."""

    def take(self, candidates: Sequence[Candidate], count: int) -> list[Candidate]:
        """Those that beams go on with, in order, of twice as many, best first; none where the search is over.

        count: how many beams there are to be.
        """
        candidates = [candidate for candidate in candidates if candidate.score > -torch.inf]  # or it is forbidden
        open_ones, written = [], len(self.ids[0]) + 1
        for place, candidate in enumerate(candidates):
            ids = [*self.ids[candidate.beam], candidate.token]
            if self.remaining > 1 and not self.ends(ids):
                open_ones.append(candidate)
            elif place < count:
                self.finished.append(Hypothesis(candidate.score / written**self.length_penalty, ids))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[count:]
        self.remaining -= 1
        if not open_ones or not self.improvable(open_ones[0].score / written**self.length_penalty, count):
            return []
        # Fewer may be open where a form forbids, or a stop text ended, the others: the rest are beams without hope.
        left = [*open_ones, *[open_ones[0]._replace(score=-torch.inf)] * (count - len(open_ones))][:count]
        self.ids = [[*self.ids[candidate.beam], candidate.token] for candidate in left]
        self.scores = [candidate.score for candidate in left]
        return left

    def improvable(self, best: float, count: int) -> bool:
        """Whether what is open, at best with this score, may yet come among the best."""
        return len(self.finished) < count or best > self.finished[-1].score


@torch.no_grad()
def beam_search(
    decoder: Decoder, rows: Rows, end_of_text_id: int, stops: Callable[[list[int]], bool]
) -> list[list[int]]:
    """What each row is continued with, without end-of-text.

    All rows have one config. stops: whether a stop text ends what was written; asked of every candidate.
    Raises FloatingPointError where probabilities aren't numbers.
    """
    count, penalty = rows.configs[0].num_beams, rows.configs[0].length_penalty

    def ends(ids: list[int]) -> bool:
        return ids[-1] == end_of_text_id or stops(ids)

    searches = [Search([[]], [0.0], remaining, ends, penalty) for remaining in rows.remaining]
    cache = KVCache(len(rows.ids), rows.capacity, decoder.word_embeddings.weight.device)
    logits, active, beams = prefill(decoder, rows.ids, cache), list(range(len(searches))), rows
    while True:
        found = best_of_each(logits, beams, [searches[row].scores for row in active], end_of_text_id, 2 * count)
        width, kept, still = len(searches[active[0]].ids), list[tuple[int, int]](), list[int]()
        for place, row in enumerate(active):
            if left := searches[row].take(found[place], count):
                still.append(row)
                kept += [(place * width + candidate.beam, candidate.token) for candidate in left]
        if not still:
            return [[token for token in search.finished[0].ids if token != end_of_text_id] for search in searches]
        active, beams = still, continued(beams, kept)
        cache.reorder([beam for beam, _ in kept])
        with attention_kernels(logits.device):
            last = upload([token for _, token in kept], torch.int64, logits.device)
            logits = decoder(last[:, None], cache=cache)[:, -1]


def best_of_each(
    logits: Tensor, beams: Rows, scores: Sequence[Sequence[float]], end_of_text_id: int, count: int
) -> list[list[Candidate]]:
    """The likeliest continuations of each row's beams, best first.

    Args:
        logits: (B·K, V).
        beams: What each beam has come to, B·K of them.
        scores: Of each row's beams, (B, K).
    """
    vocab_size = logits.shape[-1]
    logprobs = logits.log_softmax(-1, dtype=torch.float32)
    if bool(logprobs.isnan().any()):
        raise FloatingPointError(NOT_NUMBERS)
    logprobs = Penalties(beams, end_of_text_id, vocab_size, logits.device)(logprobs)
    before = upload([score for row in scores for score in row], torch.float32, logits.device)
    totals = (mask(logprobs, beams.constraints) + before[:, None]).view(len(scores), -1)
    values, places = (found.tolist() for found in totals.topk(min(count, totals.shape[-1])))
    return [
        [Candidate(score, *divmod(place, vocab_size)) for score, place in zip(*row, strict=True)]
        for row in zip(values, places, strict=True)
    ]


def continued(beams: Rows, kept: Sequence[tuple[int, int]]) -> Rows:
    """The beams that are gone on with, each with its next token. kept: which one, and the token."""
    chosen = beams.select([beam for beam, _ in kept])
    tokens = [token for _, token in kept]
    pairs = zip(chosen.constraints, tokens, strict=True)
    return replace(
        chosen,
        ids=[[*ids, token] for ids, token in zip(chosen.ids, tokens, strict=True)],
        constraints=[constraint and constraint.after(token) for constraint, token in pairs],
    )
