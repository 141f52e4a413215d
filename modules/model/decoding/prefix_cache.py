"""Prefix caching: what several prompts begin with is read once, and kept for prompts that come later.

Keys and values are kept in blocks of BLOCK positions, each under a hash of all tokens up to its end (as vLLM keeps
them): a block is found only by a prompt that begins with just these tokens. Of prompts that are read together, what
they share is read first, in passes of its own; the rest of each then goes on from there.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention import Layout
from ..decoder import Decoder, parameter_count
from ..kv_cache import KVCache
from .upload import upload

BLOCK = 16
"""Tokens. What is shared is shared in whole blocks."""

SAVED = 128
"""Tokens that needn't be read, from which on what several prompts share is read in a pass of its own: on a CPU that is
then as fast with tiny, and 1.4 times as fast with base."""

LEAST = 32
"""Tokens of a prompt that must be there already to be fetched: tiny would read them just as fast, base in twice the
time."""


def block_keys(ids: Sequence[int], most: int) -> list[bytes]:
    """The keys of the whole blocks within the first `most` tokens."""
    digest, keys = hashlib.blake2b(digest_size=32), []
    for end in range(BLOCK, most + 1, BLOCK):
        digest.update(array("q", ids[end - BLOCK : end]).tobytes())
        keys.append(digest.digest())
    return keys


class PrefixCache:
    """Blocks of one decoder, across prompts; those that were used longest ago go first. For one thread."""

    def __init__(self, tokens: int) -> None:
        """tokens: how many positions are kept at most."""
        self.most = tokens // BLOCK
        self.decoder: Decoder | None = None
        self.blocks: OrderedDict[bytes, Tensor] = OrderedDict()
        """Key → keys and values of its positions alone, (layers, nh, 2, BLOCK, hs), least recently used first."""

    def begin(self, decoder: Decoder) -> None:
        """What is kept is this decoder's from here on; another's is of no use to it."""
        if decoder is not self.decoder:
            self.blocks.clear()
            self.decoder = decoder

    def length_of(self, ids: Sequence[int], most: int) -> int:
        """How many of a prompt's first `most` tokens needn't be read."""
        count = len(self.known(block_keys(ids, most))) * BLOCK
        return count if count >= LEAST else 0

    def known(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of a prompt's blocks that are there, from the first on."""
        return list(takewhile(self.blocks.__contains__, keys))

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """The blocks that a prompt begins with; none where they are too few to be worth it."""
        known = self.known(keys)
        if len(known) * BLOCK < LEAST:
            return {}
        self.touch(known)
        return {key: self.blocks[key] for key in known}

    def keep(self, ids: Sequence[int], filled: int, read: Callable[[int, int], Tensor]) -> None:
        """Takes in the first `filled` tokens of a row. read(start, end): keys and values of its positions."""
        keys = block_keys(ids, min(filled, self.most * BLOCK))
        known = len(self.known(keys))
        if known < len(keys):
            parts = read(known * BLOCK, len(keys) * BLOCK).split(BLOCK, 3)
            # A copy each: a view would keep the memory of all.
            self.blocks |= {key: part.contiguous() for key, part in zip(keys[known:], parts, strict=True)}
        self.touch(keys)
        while len(self.blocks) > self.most:
            self.blocks.popitem(last=False)

    def touch(self, keys: Sequence[bytes]) -> None:
        """The first block last: so none goes before those that come after it, which are of no use alone."""
        for key in reversed(keys):
            self.blocks.move_to_end(key)


def usual_room(decoder: Decoder) -> int:
    """So many tokens that keys and values are half as many numbers as the model's parameters."""
    config = decoder.config
    return parameter_count(config) // (4 * config.num_hidden_layers * config.hidden_size)


class Run(NamedTuple):
    """Neighbouring blocks of a prompt that are to be read."""

    row: int
    start: int
    end: int


def beginnings(
    decoder: Decoder, prompts: Sequence[Sequence[int]], most: Sequence[int], known: PrefixCache | None = None
) -> list[Tensor | None]:
    """Keys and values that each prompt goes on from, (layers, nh, 2, P, hs): of what is known, or shared by several.

    None: the prompt is to be read from its first token on. What is shared and not known is read here.
    most: how many tokens of each may be left out, less than there are.
    """
    keys = [block_keys(ids, count) for ids, count in zip(prompts, most, strict=True)]
    found: dict[bytes, Tensor] = {}
    if known:
        found = {key: block for row in keys for key, block in known.find(row).items()}
    counts = Counter(chain.from_iterable(keys))
    while runs := runs_to_read(keys, counts, found):
        found |= read(decoder, prompts, keys, runs, found)
    joined: dict[bytes, Tensor] = {}
    return [join(row, found, joined) for row in keys]


def runs_to_read(keys: Sequence[list[bytes]], counts: Mapping[bytes, int], found: Mapping[bytes, Tensor]) -> list[Run]:
    """The next blocks of prompts that several share and that are worth reading once, from what is found on."""
    runs: dict[bytes, Run] = {}
    for row, of_row in enumerate(keys):
        start = sum(1 for _ in takewhile(found.__contains__, of_row))
        for end in range(start + 1, len(of_row) + 1):
            sharing = counts[of_row[end - 1]]
            all_go_on = end < len(of_row) and counts[of_row[end]] == sharing
            if not all_go_on and (sharing - 1) * (end - start) * BLOCK >= SAVED:
                runs[of_row[end - 1]] = Run(row, start, end)
                break
    return list(runs.values())


def read(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[list[bytes]],
    runs: Sequence[Run],
    found: Mapping[bytes, Tensor],
) -> dict[bytes, Tensor]:
    """The blocks of these runs, each read once after what comes before it."""
    device = decoder.word_embeddings.weight.device
    texts = [prompts[row][start * BLOCK : end * BLOCK] for row, start, end in runs]
    before = [join(keys[row][:start], found, {}) for row, start, _ in runs]
    cache = KVCache(len(runs), max(run.end for run in runs) * BLOCK, device)
    ids = upload([token for text in texts for token in text], torch.int64, device)
    layout = Layout.of([len(text) for text in texts], device, before)
    decoder(ids[None], layout, cache, head=lambda hidden, weight: hidden[:, :0])
    result: dict[bytes, Tensor] = {}
    for place, (row, start, end) in enumerate(runs):
        blocks = cache.positions(place, start * BLOCK, end * BLOCK).split(BLOCK, 3)
        result |= zip(keys[row][start:end], blocks, strict=True)
    return result


def join(keys: Sequence[bytes], found: Mapping[bytes, Tensor], joined: dict[bytes, Tensor]) -> Tensor | None:
    """The blocks that are found, from the first on, end to end. joined: last key → what was joined before."""
    first = list(takewhile(found.__contains__, keys))
    if not first:
        return None
    if first[-1] not in joined:
        joined[first[-1]] = torch.cat([found[key] for key in first], 3)
    return joined[first[-1]]
