"""The generation loop with its KV cache, and sampling; torch only. Letters as in decoder.py.

A row's tokens depend on its prompt, the parameters and the seed alone, never on the rows beside it: prompts are
laid end to end for the first pass (no padding), each row has positions and a random generator of its own, a
finished row leaves the batch, and new ones may join it (server/engine.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .attention import Layout, attention_kernels
from .decoder import Decoder
from .decoding.batch_rows import Rows, start
from .decoding.constraints import Constraint
from .decoding.prefix_cache import PrefixCache, beginnings
from .decoding.sampler import Sampler, checked
from .decoding.token_scores import Scores, before_wanted, measure_prompts
from .decoding.upload import upload
from .kv_cache import KVCache

if TYPE_CHECKING:
    from ..config.generation import GenerationConfig


@torch.no_grad()  # not inference mode: what it makes of spread weights could not be trained on afterwards
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig | Sequence[GenerationConfig],
    end_of_text_id: int,
    scores: Sequence[Scores | None] = (),
    constraints: Sequence[Constraint | None] = (),
) -> Generator[tuple[int, int | None], int | None]:
    """Continues every prompt; yields (row, token id) as they come, and (row, None) when a row has ended.

    A row ends with end-of-text (which isn't yielded), after max_new_tokens, or at the model's last position.
    `.send(row)` instead of next() ends that row early: a stop text was found, or its reader has gone.
    All rows share a config, or each has its own. scores: of each row, filled before its tokens are yielded.
    constraints: what each row keeps to; `form` is the caller's to turn into them (inference/verse).
    Raises ValueError for a prompt that is empty, or leaves no position to write to.
    """
    configs = config if isinstance(config, Sequence) else [config] * len(prompts)
    rows = start(decoder, prompts, configs, scores, constraints)
    batch = open_batch(decoder, end_of_text_id, len(prompts))
    batch.join(rows)
    yield from write(batch, batch.advance)


def write(batch: Batch, advance: Callable[[list[int]], object]) -> Generator[tuple[int, int | None], int | None]:
    """The loop of `generate`; yields what it yields.

    advance: batch.advance, or what calls it, then perhaps batch.join for rows that come in.
    """
    try:
        while True:
            rows = batch.rows
            ended: set[int] = set()
            for i, token in enumerate(batch.next_tokens()):
                number = rows.numbers[i]
                rows.ids[i].append(token)
                rows.remaining[i] -= 1
                stopped = None if token == batch.end_of_text_id else (yield number, token)
                if token == batch.end_of_text_id or stopped == number or rows.remaining[i] == 0:
                    ended.add(i)
                    yield number, None
                elif constraint := rows.constraints[i]:
                    rows.constraints[i] = constraint.after(token)
            left = moved_up(len(rows.ids), ended)
            if not left:
                break
            advance(left)
    except GeneratorExit:  # after an error the batch isn't closed: nothing that it held is used again
        batch.close()
        raise
    batch.close()


def moved_up(count: int, ended: set[int]) -> list[int]:
    """Indices of the rows left of `count`: the last rows take the places of those that ended, the others stay.

    So few rows of a cache have to be moved.
    """
    left = count - len(ended)
    last = [i for i in range(left, count) if i not in ended]
    return [last.pop() if i in ended else i for i in range(left)]


class Batch:
    """Rows that are written together, and all that their next tokens are drawn from; rows leave and join.

    decoding.decode_graph.GraphBatch does the same faster on a GPU.
    """

    def __init__(self, decoder: Decoder, end_of_text_id: int, prefixes: PrefixCache | None = None) -> None:
        """prefixes: of earlier prompts and texts; those of this batch are added to it."""
        self.decoder, self.end_of_text_id, self.prefixes = decoder, end_of_text_id, prefixes
        self.device = decoder.word_embeddings.weight.device
        self.rows = Rows([], [], [], [], [])
        self.joining: list[tuple[Rows, KVCache, list[int]]] = []
        """Rows whose prompts were read, and their first tokens: next_tokens takes them in."""
        self.cache: KVCache | None = None
        self.logits: Tensor
        self.sampler: Sampler | None = None
        if prefixes:
            prefixes.begin(decoder)

    def join(self, rows: Rows) -> list[int]:
        """Reads the prompts of new rows, also in the midst of `advance`; an error leaves the batch as it was.

        Returns the first token of each, as far as they are known; next_tokens gives them too, after those of the rows
        that were there before.
        """
        first = self.cache is None and not self.joining
        cache = KVCache(len(rows.ids), rows.capacity if first else max(map(len, rows.ids)), self.device)
        logits = prefill(self.decoder, rows.ids, cache, rows.scores, self.prefixes)
        tokens = self.choose(Sampler(rows, self.end_of_text_id, logits.shape[-1], self.device), logits, rows)
        if self.prefixes:
            for row, ids in enumerate(rows.ids):
                self.prefixes.keep(ids, len(ids), partial(cache.positions, row))
        self.joining.append((rows, cache, tokens))
        return tokens

    def take_in(self) -> list[int]:
        """Rows that joined are rows of the batch from here on; returns their first tokens."""
        tokens: list[int] = []
        for rows, cache, first in self.joining:
            self.rows.extend(rows)
            if self.cache is None:
                self.cache = cache
            else:
                self.cache.merge(cache, self.rows.capacity)
            self.sampler = None
            tokens += first
        self.joining.clear()
        return tokens

    def remember(self, rows: Iterable[int], unread: int = 1) -> None:
        """Keeps keys and values of these rows, but those of their last tokens that are `unread`."""
        if self.prefixes:
            for row in rows:
                self.prefixes.keep(self.rows.ids[row], len(self.rows.ids[row]) - unread, self.reader_of(row))

    def reader_of(self, row: int) -> Callable[[int, int], Tensor]:
        """What gives keys and values of positions of a row: KVCache.positions."""
        assert self.cache is not None
        return partial(self.cache.positions, row)

    def next_tokens(self) -> list[int]:
        """A token id a row, which the caller appends. FloatingPointError: probabilities aren't numbers."""
        tokens: list[int] = []
        if self.rows.ids:
            if self.sampler is None:
                self.sampler = Sampler(self.rows, self.end_of_text_id, self.logits.shape[-1], self.device)
            tokens = self.choose(self.sampler, self.logits, self.rows)
        return tokens + self.take_in()

    def choose(self, sampler: Sampler, logits: Tensor, rows: Rows) -> list[int]:
        """The next token of each row; hands log-probabilities to whoever wants them."""
        ids = sampler(logits, rows.generators, rows.constraints)
        tokens = checked(ids.tolist())
        if measured := sampler.measure(logits, ids):
            wanted = [scores for scores in rows.scores if scores]
            found = measured.scores([tokens[row] for row in sampler.scored], sampler.tops)
            for scores, score in zip(wanted, found, strict=True):
                scores.add(score)
        return tokens

    def advance(self, left: list[int], between: Callable[[], object] | None = None) -> None:
        """Drops all rows but these, and goes on to the next token.

        between: is called between the layers, for what can't wait until all of them are computed.
        """
        if len(left) < len(self.rows.ids):
            self.remember(set(range(len(self.rows.ids))).difference(left))
            self.rows, self.sampler = self.rows.select(left), None
        assert self.cache is not None
        self.cache.between = between
        self.logits = decode_step(self.decoder, self.cache, self.rows, left)
        self.cache.between = None  # it may know the batch, and so would keep it from being freed at once
        if self.sampler:
            self.sampler.append(lambda: upload([ids[-1] for ids in self.rows.ids], torch.int64, self.device))

    def close(self) -> None:
        """Nothing more is asked of it."""
        self.remember(range(len(self.rows.ids)))


def open_batch(decoder: Decoder, end_of_text_id: int, places: int, prefixes: PrefixCache | None = None) -> Batch:
    """A batch without rows, for at least `places` of them; prefixes: as of Batch.

    A GPU replays a captured step where the weights are whole and aren't being trained: what is captured keeps memory.
    """
    weight = decoder.word_embeddings.weight
    spread = type(weight) not in (Tensor, nn.Parameter)
    trained = decoder.training or weight.requires_grad
    if not weight.is_cuda or spread or trained or torch.is_autocast_enabled("cuda"):
        return Batch(decoder, end_of_text_id, prefixes)
    from .decoding.decode_graph import GraphBatch

    return GraphBatch(decoder, end_of_text_id, places, prefixes)


def prefill(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    cache: KVCache | None,
    scores: Sequence[Scores | None] = (),
    prefixes: PrefixCache | None = None,
) -> Tensor:
    """Runs all prompts through the decoder, fills the cache, returns next-token logits (B, V).

    scores: what is wanted of the prompts' own tokens, which is found on the way. prefixes: what needn't be read.
    """
    device = decoder.word_embeddings.weight.device
    most = [before_wanted(*each) for each in zip(prompts, scores or [None] * len(prompts), strict=True)]

    def head(hidden: Tensor, weight: Tensor) -> Tensor:
        if any(scores):
            measure_prompts(decoder.head, hidden[0], weight, prompts, scores, skipped)
        return decoder.head(hidden[0, last], weight)

    with attention_kernels(device):
        before = beginnings(decoder, prompts, most, prefixes)
        skipped = [0 if kv is None else kv.shape[3] for kv in before]
        lengths = [len(ids) - count for ids, count in zip(prompts, skipped, strict=True)]
        flat = [token for ids, count in zip(prompts, skipped, strict=True) for token in ids[count:]]
        last = upload([end - 1 for end in accumulate(lengths)], torch.int64, device)
        documents = Layout.of(lengths, device, before) if any(skipped) else lengths
        return decoder(upload(flat, torch.int64, device)[None], documents, cache, head=head)


def decode_step(decoder: Decoder, cache: KVCache, rows: Rows, left: list[int]) -> Tensor:
    """Next-token logits (B, V) of `rows`, from the last id of each; `left`: their indices in the cache."""
    if len(left) < len(cache.lengths):
        cache.select(left)
    last = torch.tensor([[ids[-1]] for ids in rows.ids], device=cache.lengths.device)
    with attention_kernels(last.device):
        return decoder(last, cache=cache)[:, -1]
