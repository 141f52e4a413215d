"""Keys and values of the positions that a decoder has seen, so that a step computes the new one alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class KVCache:
    """Preallocated keys and values of a batch of rows that may differ in length; nothing is padded on the left.

    layers[layer]: keys and values side by side, (B, nh, 2, S, hs), so that a step writes both at once. It is a view of
    the first B rows of storage[layer], which keeps the memory of finished rows for later ones.
    lengths: (B,) int64, positions already filled in each row.
    mask: (B, 1, 1, longest + 1) bool, the positions that the next token of a row attends to; None where rows are
    equally long and each attends to all.
    between: is called in each layer of a step, before its attention.
    """

    between: Callable[[], object] | None = None

    def __init__(self, rows: int, capacity: int, device: torch.device) -> None:
        """capacity: positions of each row, prompt and answer together (S)."""
        self.capacity = capacity
        self.layers: list[Tensor] = []
        self.storage: list[Tensor] = []
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.longest = 0  # of lengths, kept in Python: asking a GPU for it would stall every step
        self.ragged = False
        self.mask: Tensor | None = None

    def prefill(self, layer: int, row: int, kv: Tensor) -> None:
        """Writes the keys and values of whole prompts, (rows, nh, 2, T, hs), into the rows from `row` on."""
        if layer == len(self.layers):  # made here, where the heads on this device and their number format are known
            shape = (len(self.lengths), kv.shape[1], 2, self.capacity, kv.shape[4])
            self.storage.append(kv.new_zeros(shape))
            self.layers.append(self.storage[layer])
        self.layers[layer][row : row + len(kv), :, :, : kv.shape[3]] = kv

    def positions(self, row: int, start: int, end: int) -> Tensor:
        """Keys and values of some positions of a row, a copy: (layers, nh, 2, end - start, hs)."""
        return torch.stack([cached[row, :, :, start:end] for cached in self.layers])

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Writes the next token's keys and values, and attends to all that are there: (B, nh, 3, hs) → (B, nh·hs)."""
        if self.between:
            self.between()
        cached, kv = self.layers[layer], qkv[:, :, 1:]
        if self.ragged:
            cached[torch.arange(len(kv), device=kv.device), :, :, self.lengths] = kv
        else:
            cached[:, :, :, self.longest] = kv  # a plain copy costs less than one by index
        filled = cached[:, :, :, : self.longest + 1]
        y = F.scaled_dot_product_attention(qkv[:, :, :1], filled[:, :, 0], filled[:, :, 1], attn_mask=self.mask)
        return y.flatten(1)

    def advance(self, lengths: Sequence[int]) -> None:
        """Counts the new positions of each row; called once a forward pass, after all layers have written theirs."""
        self.lengths += torch.tensor(lengths, device=self.lengths.device)
        self.ragged |= min(lengths) != max(lengths)
        self.longest += max(lengths)
        self.set_mask()

    def select(self, rows: Sequence[int]) -> None:
        """Drops every row but these, so that finished rows cost nothing more; new row i is the old rows[i] ≥ i.

        Works in place and copies only the filled positions of the rows that move.
        """
        for cached in self.layers:
            for new, old in enumerate(rows):
                if new != old:
                    cached[new, :, :, : self.longest] = cached[old, :, :, : self.longest]
        self.layers = [cached[: len(rows)] for cached in self.layers]
        self.set_lengths(self.lengths[torch.tensor(rows, device=self.lengths.device)])

    def reorder(self, rows: Sequence[int]) -> None:
        """New row i is the old rows[i], which may come several times or not at all."""
        if list(rows) == list(range(len(self.lengths))):
            return
        chosen = torch.tensor(rows, device=self.lengths.device)
        self.storage = [cached.index_select(0, chosen) for cached in self.layers]
        self.layers = list(self.storage)
        self.set_lengths(self.lengths[chosen])

    def merge(self, other: KVCache, capacity: int) -> None:
        """Appends the rows of another cache, and makes room for at least `capacity` positions in each row.

        Storage that is too small is copied once, to at least twice its size.
        """
        have, rows = len(self.lengths), len(self.lengths) + len(other.lengths)
        if capacity > self.capacity:
            self.capacity = max(capacity, 2 * self.capacity)
        for layer, theirs in enumerate(other.layers):
            storage = self.storage[layer]
            if rows > len(storage) or self.capacity > storage.shape[3]:
                places = len(storage) if rows <= len(storage) else max(rows, 2 * len(storage))
                larger = storage.new_zeros((places, *storage.shape[1:3], self.capacity, storage.shape[4]))
                larger[:have, :, :, : self.longest] = self.layers[layer][:, :, :, : self.longest]
                self.storage[layer] = storage = larger
            storage[have:rows, :, :, : other.longest] = theirs[:, :, :, : other.longest]
            self.layers[layer] = storage[:rows]
        self.set_lengths(torch.cat([self.lengths, other.lengths]))

    def set_lengths(self, lengths: Tensor) -> None:
        self.lengths = lengths
        self.longest = int(lengths.max())
        self.ragged = bool((lengths != self.longest).any())
        self.set_mask()

    def set_mask(self) -> None:
        self.mask = None
        if self.ragged:
            positions = torch.arange(self.longest + 1, device=self.lengths.device)
            self.mask = positions <= self.lengths[:, None, None, None]
