"""Decoding on a GPU at the speed of its memory: a step captured once as a CUDA graph, and replayed for each token.

A step of a few hundred small kernels takes longer to launch than to compute. In a graph one launch does for all of
them, but addresses and shapes are fixed: rows take places in a cache of fixed size, and ids and lengths are tensors
that each replay reads and writes. Numbers of rows and positions are powers of two, so that few graphs are captured.
A row attends to its own filled positions alone, so that what it becomes doesn't depend on who sits beside it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import attention_kernels, takes_any_lengths
from ..decoder import Decoder
from ..kv_cache import KVCache
from ..sampling import Batch, prefill
from .batch_rows import Rows
from .constraints import Constraint
from .prefix_cache import PrefixCache
from .sampler import Sampler, checked
from .token_scores import Measured, TokenScore
from .upload import upload

SHORTEST = 128
"""Positions for which a place has room at least."""

KEPT = 2
"""Graphs that wait for the next batch of a decoder; each holds the memory of its cache."""


class StaticCache(KVCache):
    """Keys and values at fixed addresses: layers[layer] is (places, S, 2, nh, hs).

    lengths: (places,) int64, filled positions; 0 where a place is free. used: lengths + 1 while a token is computed.
    occupied: (places,) int64, 1 where there is a row.
    """

    def __init__(self, decoder: Decoder, places: int, capacity: int) -> None:
        weight, config = decoder.word_embeddings.weight, decoder.config
        super().__init__(places, capacity, weight.device)
        heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        shape = (places, capacity, 2, heads, size)
        self.layers = [weight.new_zeros(shape) for _ in range(config.num_hidden_layers)]
        self.places = torch.arange(places, device=weight.device)
        self.occupied = torch.zeros_like(self.lengths)
        self.used = torch.ones_like(self.lengths, dtype=torch.int32)
        starts = torch.arange(places + 1, dtype=torch.int32, device=weight.device)
        self.query_starts, self.key_starts = starts, starts * capacity
        self.attention = flash_attention if takes_any_lengths(weight, size) else masked_attention
        self.joining: Tensor | None = None
        """The places of the rows whose prompts are being read, (rows,) int64."""
        self.longest = 1  # to the decoder 0 means that whole prompts come

    def read(self, decoder: Decoder, rows: Rows, places: Tensor, prefixes: PrefixCache | None) -> Tensor:
        """Reads the prompts of rows into these places; returns next-token logits (rows, V)."""
        self.joining, self.longest = places, 0
        try:
            return prefill(decoder, rows.ids, self, rows.scores, prefixes)
        finally:
            self.joining, self.longest = None, 1

    def prefill(self, layer: int, row: int, kv: Tensor) -> None:
        assert self.joining is not None
        places = self.joining[row : row + len(kv)]
        self.layers[layer][places, : kv.shape[3]] = kv.permute(0, 3, 2, 1, 4)

    def positions(self, row: int, start: int, end: int) -> Tensor:
        return torch.stack([cached[row, start:end].permute(2, 1, 0, 3) for cached in self.layers])

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        self.layers[layer][self.places, self.lengths] = qkv[:, :, 1:].transpose(1, 2)
        keys, values = self.layers[layer].unbind(2)
        return self.attention(self, qkv[:, :, 0], keys, values).flatten(1)

    def advance(self, lengths: Sequence[int]) -> None:
        if self.joining is None:
            self.lengths.add_(self.occupied)
        else:
            self.lengths[self.joining] = upload(lengths, torch.int64, self.lengths.device)

    def occupy(self, places: list[int]) -> None:
        """These places are taken, all others free."""
        self.occupied.copy_(
            upload([int(i in places) for i in range(len(self.places))], torch.int64, self.places.device)
        )
        self.lengths.mul_(self.occupied)

    def copy_from(self, other: StaticCache) -> None:
        """Takes over a smaller cache."""
        places, capacity = len(other.places), other.capacity
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            layer[:places, :capacity] = theirs
        self.lengths[:places] = other.lengths


def flash_attention(cache: StaticCache, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q (places, nh, hs), keys and values (places, S, nh, hs) → (places, nh, hs); reads the filled positions alone."""
    result: Tensor = torch.ops.aten._flash_attention_forward(
        q, keys.flatten(0, 1), values.flatten(0, 1), cache.query_starts, cache.key_starts, 1, cache.capacity,
        0.0, False, False, seqused_k=cache.used,
    )[0]  # fmt: skip
    return result


def masked_attention(cache: StaticCache, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The same for any number format and device, by way of all positions."""
    mask = torch.arange(cache.capacity, device=q.device) < cache.used[:, None]
    y = F.scaled_dot_product_attention(
        q[:, :, None], keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask[:, None, None]
    )
    return y[:, :, 0]


class DecodeGraph:
    """The next token's logits for a fixed number of places and positions, captured on a GPU."""

    def __init__(self, decoder: Decoder, places: int, capacity: int) -> None:
        self.weights = addresses(decoder)
        self.cache = StaticCache(decoder, places, capacity)
        self.ids = torch.zeros_like(self.cache.lengths)
        """The last token of each place, which the step reads."""
        self.logits: Tensor
        self.graph: torch.cuda.CUDAGraph | None = None
        if self.ids.is_cuda:
            self.capture(decoder)

    def capture(self, decoder: Decoder) -> None:
        """All places are free meanwhile: what the steps write is never read."""
        with torch.cuda.device(self.ids.device):
            current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):  # libraries choose and load kernels, and take their work space, before
                for _ in range(2):
                    self.step(decoder)
            current.wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may use the GPU
                self.step(decoder)

    def step(self, decoder: Decoder) -> None:
        torch.add(self.cache.lengths, 1, out=self.cache.used)
        with attention_kernels(self.ids.device):
            self.logits = decoder(self.ids.clamp(min=0)[:, None], cache=self.cache)[:, -1]

    def replay(self, decoder: Decoder) -> None:
        if self.graph is None:
            self.step(decoder)
        else:
            self.graph.replay()


FREE: WeakKeyDictionary[Decoder, list[DecodeGraph]] = WeakKeyDictionary()
"""Graphs that no batch uses at present."""


def addresses(decoder: Decoder) -> list[int]:
    """Where the weights lie: a graph is of use as long as they stay there."""
    return [parameter.data_ptr() for parameter in decoder.parameters()]


def take(decoder: Decoder, places: int, capacity: int) -> DecodeGraph:
    """A graph for these numbers rounded up, which no other batch uses."""
    places = 1 << (places - 1).bit_length()
    free = FREE.get(decoder, [])
    weights = addresses(decoder)
    free[:] = [graph for graph in free if graph.weights == weights]
    for graph in free:
        if len(graph.ids) == places and graph.cache.capacity >= capacity:
            free.remove(graph)
            return graph
    return DecodeGraph(decoder, places, max(SHORTEST, 1 << (capacity - 1).bit_length()))


class GraphBatch(Batch):
    """A batch whose steps are replayed. The GPU is one token ahead, so that it computes while this one is read.

    What it computes of a row that turns out to have ended is thrown away. While any row has a constraint, what may come
    next hangs on the token before: then nothing is computed ahead.
    """

    def __init__(self, decoder: Decoder, end_of_text_id: int, places: int, prefixes: PrefixCache | None = None) -> None:
        super().__init__(decoder, end_of_text_id, prefixes)
        self.least = places
        self.graph: DecodeGraph | None = None
        self.places: list[int] = []
        """Of each row."""
        self.waits = False
        """Whether the next token is computed only when this one has been taken."""
        self.measured: list[tuple[list[int], list[int], Measured]] = []
        """Of the tokens in graph.ids whose log-probabilities are wanted: places, how many likeliest ones, and these."""

    def join(self, rows: Rows) -> list[int]:
        graph = self.graph = self.with_room(len(self.places) + len(rows.ids), rows.capacity)
        free = [place for place in range(len(graph.ids)) if place not in self.places][: len(rows.ids)]
        places = upload(free, torch.int64, self.device)
        logits = graph.cache.read(self.decoder, rows, places, self.prefixes)
        sampler = Sampler(rows, self.end_of_text_id, logits.shape[-1], self.device)
        ids = graph.ids[places] = sampler(logits, rows.generators, rows.constraints)
        self.keep(sampler, [free[row] for row in sampler.scored], logits, ids)
        self.rows.extend(rows)
        self.places += free
        self.remember(range(len(self.places) - len(free), len(self.places)), 0)
        self.sampler = None
        return []  # the GPU may be choosing them still

    def reader_of(self, row: int) -> Callable[[int, int], Tensor]:
        assert self.graph is not None
        return partial(self.graph.cache.positions, self.places[row])

    def with_room(self, rows: int, capacity: int) -> DecodeGraph:
        """The graph, or a larger one that goes on where it was."""
        if self.graph is None:
            return take(self.decoder, max(rows, self.least), capacity)
        places, have = len(self.graph.ids), self.graph.cache.capacity
        if rows <= places and capacity <= have:
            return self.graph
        larger = take(self.decoder, max(rows, places), max(capacity, have))
        larger.cache.copy_from(self.graph.cache)
        larger.ids[:places] = self.graph.ids
        self.sampler = None
        return larger

    def next_tokens(self) -> list[int]:
        assert self.graph is not None
        ids = self.graph.ids.to("cpu", non_blocking=True, copy=True)
        measured = [(places, tops, found.on_cpu()) for places, tops, found in self.measured]
        self.measured.clear()
        ready = torch.cuda.current_stream(self.device).record_event() if self.graph.ids.is_cuda else None
        self.waits = any(self.rows.constraints)
        if not self.waits and max(self.rows.remaining) > 1:
            self.launch(self.graph)
        if ready:
            ready.synchronize()
        tokens = ids.tolist()
        chosen = checked([tokens[place] for place in self.places])
        found: dict[int, TokenScore] = {}
        for places, tops, part in measured:  # of a place that was taken anew the later part
            found.update(zip(places, part.scores([tokens[place] for place in places], tops), strict=True))
        for place, scores in zip(self.places, self.rows.scores, strict=True):
            if scores:
                scores.add(found[place])
        return chosen

    def keep(self, sampler: Sampler, places: list[int], logits: Tensor, ids: Tensor) -> None:
        if measured := sampler.measure(logits, ids):
            self.measured.append((places, sampler.tops, measured))

    def launch(self, graph: DecodeGraph) -> None:
        """Starts to compute every place's next token."""
        counted = self.waits and self.sampler is None  # the last token was taken, and a new sampler finds it in its row
        if self.sampler is None:
            graph.cache.occupy(self.places)
        graph.replay(self.decoder)
        if self.sampler is None:
            row_at = {place: row for row, place in enumerate(self.places)}  # a free place: as the first row, in vain
            by_place = self.rows.select([row_at.get(place, 0) for place in range(len(graph.ids))])
            by_place.scores = [by_place.scores[place] if place in row_at else None for place in range(len(graph.ids))]
            self.sampler = Sampler(by_place, self.end_of_text_id, graph.logits.shape[-1], self.device)
        if not counted:
            self.sampler.append(lambda: graph.ids.clamp(min=0))  # -1, no number, is refused when it has been read
        generators: list[random.Random | None] = [None] * len(graph.ids)
        constraints: list[Constraint | None] = [None] * len(graph.ids)
        for row, place in enumerate(self.places):
            generators[place], constraints[place] = self.rows.generators[row], self.rows.constraints[row]
        graph.ids.copy_(self.sampler(graph.logits, generators, constraints))
        self.keep(self.sampler, self.sampler.scored, graph.logits, graph.ids)

    def advance(self, left: list[int], between: Callable[[], object] | None = None) -> None:
        if len(left) < len(self.places):
            self.remember(set(range(len(self.places))).difference(left))
            self.rows, self.places = self.rows.select(left), [self.places[i] for i in left]
            self.sampler = None
        if self.waits:
            assert self.graph is not None
            self.launch(self.graph)

    def close(self) -> None:
        if self.graph is not None:
            super().close()
            free = FREE.setdefault(self.decoder, [])
            free.append(self.graph)
            del free[:-KEPT]
            self.graph = None
