"""Vocabularies trained on a user's own texts: by character, or byte-pair merges of characters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Literal

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from .lookup import CODE_POINTS, code_points
from .vocabulary import BYTE_TOKENS, END_OF_TEXT

# In training, every sign and every space is a word of its own, so that no merge holds one. Encoding then needs
# no such cut, and is faster without. It also keeps "<0x41>" and "<|endoftext|>", which hold signs, from ever
# being merged out of a user's text.
_SIGN = r"\s\p{P}\p{S}"

LONGEST_WORD = 1024
"""Characters: longer stretches without a sign are cut, since the time to learn from one grows with its square."""

# Text that repeats without a sign in it (a chorus, "哈哈哈哈…") must not become one giant token.
_LONGEST_MERGE = 16


def train_backend(
    texts: Iterable[str], kind: Literal["character", "bpe"], vocab_size: int, min_frequency: int
) -> tokenizers.Tokenizer:
    """Ids: end-of-text 0, the 256 bytes, characters by falling frequency, then (kind "bpe") merges."""
    _check_training_arguments(kind, vocab_size, min_frequency)
    if kind == "bpe" and isinstance(texts, Iterator):
        texts = list(texts)  # read twice: characters first, merges after
    counts = count_characters(texts)
    if not counts:
        raise ValueError("no text to train a tokenizer on: every row is empty")
    surrogate = next((character for character in counts if "\ud800" <= character <= "\udfff"), None)
    if surrogate:
        raise ValueError(f"the text holds half a surrogate pair ({surrogate!a}), which is not a character; remove it")
    room = vocab_size - 1 - len(BYTE_TOKENS)
    by_frequency = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    characters = [character for character, count in by_frequency if count >= min_frequency][:room]
    merges: list[tuple[str, str]] = []
    if kind == "bpe" and room > len(characters) > 0:
        merges = _learn_merges(texts, counts, characters, room, min_frequency)
    vocab = {token: token_id for token_id, token in enumerate([END_OF_TEXT, *BYTE_TOKENS, *characters])}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    return _backend(vocab, merges)


def extended_backend(
    backend: tokenizers.Tokenizer, texts: Iterable[str], new_tokens: int, min_frequency: int
) -> tokenizers.Tokenizer:
    """One of `train_backend`'s with up to `new_tokens` ids more: the characters that it lacks, by falling frequency,
    then merges, which come after those that it has."""
    if isinstance(texts, Iterator):
        texts = list(texts)
    model = json.loads(backend.to_str())["model"]
    vocab, merges = model["vocab"], [(left, right) for left, right in model["merges"]]
    counts = count_characters(texts)
    lacking = [c for c, count in counts.items() if c not in vocab and count >= min_frequency]
    new = sorted(lacking, key=lambda character: (-counts[character], character))[:new_tokens]
    vocab |= {character: len(vocab) + place for place, character in enumerate(new)}
    characters, room = [token for token in vocab if len(token) == 1], new_tokens - len(new)
    # Some will be those that it has, so that more are learnt than there is room for.
    for left, right in _learn_merges(texts, counts, characters, len(characters) + len(merges) + room, min_frequency):
        if room and left in vocab and right in vocab and left + right not in vocab:
            merges.append((left, right))
            vocab[left + right] = len(vocab)
            room -= 1
    return _backend(vocab, merges)


def _backend(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([END_OF_TEXT])
    return backend


def count_characters(texts: Iterable[str]) -> dict[str, int]:
    """How often each character occurs."""
    counts = np.zeros(CODE_POINTS, np.int64)
    rest = iter(texts)
    while batch := list(islice(rest, 4096)):
        counts += np.bincount(code_points(batch), minlength=CODE_POINTS)
    return {chr(code): int(counts[code]) for code in np.flatnonzero(counts)}


def _check_training_arguments(kind: str, vocab_size: int, min_frequency: int) -> None:
    if kind not in ("character", "bpe"):
        raise ValueError(f'tokenizer kind {kind!r} cannot be trained; choose "character" or "bpe"')
    least = 2 + len(BYTE_TOKENS)
    if vocab_size < least:
        raise ValueError(f"vocab_size ({vocab_size}) must be at least {least}: end-of-text, 256 bytes, one character")
    if min_frequency < 1:
        raise ValueError(f"min_frequency ({min_frequency}) must be at least 1")


def _learn_merges(
    texts: Iterable[str], counts: Mapping[str, int], characters: list[str], room: int, min_frequency: int
) -> list[tuple[str, str]]:
    """Merges among `characters`, by how often they are used, until both together are `room`. counts: of all in the
    texts. Another one becomes a space: the trainer leaves out what isn't in its alphabet, and would see the neighbours
    side by side."""
    rare = {ord(character): " " for character in counts.keys() - set(characters)}
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = word_splitter()
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=min_frequency,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        max_token_length=_LONGEST_MERGE,
        show_progress=False,
    )
    backend.train_from_iterator((text.translate(rare) for text in texts), trainer)
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def word_splitter() -> pre_tokenizers.PreTokenizer:
    """Cuts text into what merges are learnt from: signs, and stretches of at most LONGEST_WORD between them."""
    words = tokenizers.Regex(f"[{_SIGN}]|[^{_SIGN}]{{{LONGEST_WORD}}}")
    return pre_tokenizers.Split(words, behavior="isolated")
