"""Our tokenizers as llama.cpp's vocabularies: right texts for every id, and where that can be had, a text's own ids.

What llama.cpp does with each is in its src/llama-vocab.cpp. A token of the type USER_DEFINED is cut out of a text
before anything else is done to it, and spelt as it stands: that is how spaces and Chinese characters get through
tokenizers that would change them.

precompiled_charsmap is SentencePiece's table of replacements, which llama.cpp's unigram tokenizer reads: four bytes
with the size of a trie, the trie as a double array, then the replacements, each ended by a zero byte. A cell is 32
bits: its label in bits 0-7, whether a key ends there in bit 8, and in bits 10-30 an offset. Offset xor the cell's place
is its base; base xor a label is the child's place; at the base of a key's last cell stands the replacement's place,
with bit 31. (Yata's darts-clone; llama.cpp reads it in llm_tokenizer_ugm_session.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ...tokenizer.pretrained import read_backend
from ...tokenizer.streaming import NO_SPACE_BEFORE, is_wide
from ...tokenizer.tokenizer import Tokenizer
from ...tokenizer.vocabulary import byte_characters

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


@dataclass
class Vocabulary:
    """Tokens by id, in the words of GGUF's tokenizer.ggml.* keys."""

    model: str
    tokens: list[str]
    types: list[str]
    """gguf.TokenType's names."""
    unknown_id: int = 0
    pre: str = ""
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    normalizer: bytes = b""
    words_begin_with_space: bool = False
    note: str = ""


def vocabulary(folder: Path, tokenizer: Tokenizer, size: int) -> tuple[Vocabulary, list[str]]:
    """Of the tokenizer saved in `folder`, with unused tokens up to `size`; and notes for whoever exports."""
    backend = read_backend(folder)
    result = BUILDERS[tokenizer.kind](tokenizer, backend)
    for token_id in range(len(result.tokens), size):
        result.tokens.append(f"[PAD{token_id}]")
        result.types.append("UNUSED")
        if result.scores:
            result.scores.append(0.0)
    notes = [result.note] if result.note else []
    if (template := tokenizer.for_conversations.prompt_template) is not None:
        notes.append(
            f"the prompt template {template!r} is the file's chat template: llama.cpp applies it in "
            "/v1/chat/completions, not in /completion"
        )
    return result, notes


def listed(tokenizer: Tokenizer, backend: tokenizers.Tokenizer, spell: Callable[[str], str]) -> Vocabulary:
    """All tokens by id: special ones as they are, the rest as `spell` writes them; gaps as unused."""
    by_id = {token_id: token for token, token_id in backend.get_vocab(with_added_tokens=True).items()}
    unknown = getattr(backend.model, "unk_token", None)
    tokens, types = [], []
    for token_id in range(tokenizer.vocab_size):
        token = by_id.get(token_id, f"[PAD{token_id}]")
        special = token_id not in tokenizer.token_bytes
        tokens.append(token if special else spell(token))
        types.append("UNUSED" if token_id not in by_id else "CONTROL" if special else "NORMAL")
        if token == unknown:
            types[-1] = "UNKNOWN"
    unknown_id = backend.token_to_id(unknown) if unknown else None
    return Vocabulary("", tokens, types, tokenizer.end_of_text_id if unknown_id is None else unknown_id)


def with_byte_fallback(tokenizer: Tokenizer, backend: tokenizers.Tokenizer) -> Vocabulary:
    """Trained here. Characters alone are SentencePiece's BPE without merges; with merges it is Gemma 4's tokenizer,
    which is the one in llama.cpp that merges characters, not bytes, in the order that they were learnt."""
    result = listed(tokenizer, backend, str)
    result.types = [
        "BYTE" if kind == "NORMAL" and len(token) == 6 and token.startswith("<0x") else kind
        for token, kind in zip(result.tokens, result.types, strict=True)
    ]
    (space,) = tokenizer.encode(" ")
    result.tokens[space], result.types[space] = " ", "USER_DEFINED"
    result.merges = merges_of(backend, str)
    result.model = "gemma4" if result.merges else "llama"
    result.scores = [0.0] * len(result.tokens)
    return result


def byte_level(tokenizer: Tokenizer, backend: tokenizers.Tokenizer) -> Vocabulary:
    """GPT-2's own, whose tokens are spelt in byte_characters already."""
    result = listed(tokenizer, backend, str)
    for token_id, token in backend.get_added_tokens_decoder().items():
        if not token.special:
            result.types[token_id] = "USER_DEFINED"
    result.model, result.pre, result.merges = "gpt2", "gpt-2", merges_of(backend, str)
    content = json.loads(backend.to_str())
    cutter = content["pre_tokenizer"]
    if cutter["type"] != "ByteLevel" or not cutter["use_regex"] or content["model"].get("ignore_merges"):
        result.note = (
            "llama.cpp will cut texts as GPT-2 does, and this tokenizer cuts them otherwise: hand it token ids; "
            "what it writes is right"
        )
    return result


def cut_by_jieba(tokenizer: Tokenizer, backend: tokenizers.Tokenizer) -> Vocabulary:
    """Plain text spelt in bytes, put together to characters first, and then merged as was learnt."""
    result = listed(tokenizer, backend, disguise)
    characters = {character for spelt in tokenizer.token_bytes.values() for character in spelt.decode()}
    in_bytes = sorted(character.encode() for character in characters)
    cut = [(spelt[:n], spelt[n : n + 1]) for n in range(1, 4) for spelt in in_bytes if len(spelt) > n]
    assembled = dict.fromkeys(f"{disguise(first)} {disguise(byte)}" for first, byte in cut)
    result.model, result.pre = "gpt2", "gpt-2"
    result.merges = [*assembled, *merges_of(backend, disguise)]
    result.note = (
        "llama.cpp can't cut words with jieba: hand it token ids, as texts become other ids "
        "there than in training; what it writes is right"
    )
    return result


def wordpiece(tokenizer: Tokenizer, backend: tokenizers.Tokenizer) -> Vocabulary:
    """As a unigram model, since llama.cpp's own WordPiece ends every prompt with [SEP], which is end-of-text here.

    Characters that BERT always cuts out (Chinese ones, signs) are USER_DEFINED; of the rest, the fewest tokens that
    make up a word are taken, where WordPiece takes the longest first.
    """
    result = listed(tokenizer, backend, str)
    alone = cut_out(tokenizer, backend, [t for t in result.tokens if len(t) == 1])
    taken = {token for token in result.tokens if len(token) == 1 and token in alone}
    for token_id, token in enumerate(result.tokens):
        if result.types[token_id] != "NORMAL":
            continue
        if token in taken:
            result.types[token_id] = "USER_DEFINED"
        elif not token.startswith("##") or len(token) == 2:
            result.tokens[token_id] = f"▁{token}"  # what llama.cpp's unigram tokenizer makes of a space
        elif token[2:] not in taken:
            result.tokens[token_id] = token[2:]
    result.model, result.words_begin_with_space = "t5", True
    result.scores = [-1.0] * len(result.tokens)
    result.normalizer = charsmap(normalized(backend, taken))
    result.note = (
        "llama.cpp writes Latin words with a space before them, cuts rare ones in other pieces than WordPiece, and "
        "makes one [UNK] of neighbouring characters that the vocabulary lacks and of full-width spaces"
    )
    return result


def cut_out(tokenizer: Tokenizer, backend: tokenizers.Tokenizer, characters: Sequence[str]) -> set[str]:
    """Those that are a token of their own wherever they stand, and are spelt without spaces around them."""
    results = tokenizer.encode_batch([f"a{character}a" for character in characters])
    return {
        character
        for character, ids in zip(characters, results, strict=True)
        if len(ids) == 3
        and ids[1] == backend.token_to_id(character)
        and (is_wide(character) or character in NO_SPACE_BEFORE or not character.isascii())
    }


def normalized(backend: tokenizers.Tokenizer, taken: set[str]) -> dict[str, str]:
    """Each character that BERT changes or cuts out → what it becomes (lower case, no accent, a space …).

    Those that become nothing that a token is spelt with are left out: they are unknown either way.
    """
    known = {" ", *(character for token in backend.get_vocab() for character in token)}
    normal = backend.normalizer.normalize_str if backend.normalizer else str
    changed = {}
    for code in range(1, 0x10000):
        character = chr(code)
        if character in taken or "\ud800" <= character <= "\udfff":
            continue
        pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(normal(f"a{character}a"))]
        result = " ".join(pieces)[1:-1]
        if result != character and known.issuperset(result):
            changed[character] = result
    return changed


def merges_of(backend: tokenizers.Tokenizer, spell: Callable[[str], str]) -> list[str]:
    merges: list[Any] = json.loads(backend.to_str())["model"]["merges"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return [f"{spell(left)} {spell(right)}" for left, right in pairs]


def disguise(spelt: str | bytes) -> str:
    """A text's bytes in GPT-2's spelling (vocabulary.byte_characters)."""
    characters = {byte: character for character, byte in byte_characters().items()}
    return "".join(characters[byte] for byte in (spelt.encode() if isinstance(spelt, str) else spelt))


BUILDERS: dict[str, Callable[[Tokenizer, tokenizers.Tokenizer], Vocabulary]] = {
    "character": with_byte_fallback,
    "bpe": with_byte_fallback,
    "byte_level_bpe": byte_level,
    "jieba_bpe": cut_by_jieba,
    "bert": wordpiece,
}
