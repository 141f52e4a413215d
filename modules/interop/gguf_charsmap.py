"""A table of replacements in the form that llama.cpp's unigram tokenizer reads: SentencePiece's precompiled_charsmap.

Four bytes with the size of a trie, the trie as a double array, then the replacements, each ended by a zero byte.
A cell is 32 bits: its label in bits 0-7, whether a key ends there in bit 8, and in bits 10-30 an offset. Offset xor the
cell's place is its base; base xor a label is the child's place; at the base of a key's last cell stands the
replacement's place, with bit 31. (Yata's darts-clone; llama.cpp reads it in llm_tokenizer_ugm_session.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

FIRST_BYTES = 256
FOLLOWING, BYTES = 0x80, 64
"""In UTF-8 these many bytes, from this one on, may follow the first of a character: a cell's children fill a block."""


def charsmap(replacements: dict[str, str]) -> bytes:
    """Of single characters; b"" for none."""
    if not replacements:
        return b""
    texts = bytearray()
    places: dict[str, int] = {}
    root: dict[int, Any] = {}
    for key, value in replacements.items():
        if value not in places:
            places[value] = len(texts)
            texts += value.encode() + b"\0"
        *first, last = key.encode()
        node = root
        for byte in first:
            node = node.setdefault(byte, {})
        node[last] = places[value]
    cells = double_array(root)
    return np.uint32(cells.nbytes).tobytes() + cells.tobytes() + bytes(texts)


def double_array(root: dict[int, Any]) -> np.ndarray:
    """No two cells may have one base, or each would find the other's children."""
    cells = [0] * FIRST_BYTES
    ends: list[tuple[int, int]] = []
    waiting = [(0, 0, root)]
    while waiting:
        place, base, node = waiting.pop()
        cells[place] |= (place ^ base) << 10
        for label, child in node.items():
            at = base ^ label
            cells[at] = label
            if isinstance(child, int):
                ends.append((at, child))
            else:
                waiting.append((at, len(cells) ^ FOLLOWING, child))
                cells += [0] * BYTES
    cells += [0] * FIRST_BYTES  # bases of whole blocks may be that far behind the last
    for at, text in ends:
        cells[at] |= (at ^ len(cells)) << 10 | 1 << 8
        cells.append(text | 1 << 31)
    return np.array(cells + [0] * (-len(cells) % FIRST_BYTES), dtype="<u4")
