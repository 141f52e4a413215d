"""The `tokenizers` objects that moyun's Tokenizer wraps: trained here, BERT's vocab.txt, jieba + BPE, GPT-2's."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from .character_table import CODE_POINTS, code_points
from .small_files import VOCABULARY, read_json, read_text, require_small

TokenizerKind = Literal["character", "bpe", "bert", "jieba_bpe", "byte_level_bpe"]
END_OF_TEXT = "<|endoftext|>"
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
NOWHERE = "\U0010fffe"
"""A text that no vocabulary knows: some that can be read fail when they have to encode one."""
BERT_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# In training, every sign and every space is a word of its own, so that no merge holds one. Encoding then needs
# no such cut, and is faster without. It also keeps "<0x41>" and "<|endoftext|>", which hold signs, from ever
# being merged out of a user's text.
_WORDS = r"[\s\p{P}\p{S}]"
# Text that repeats without a sign in it (a chorus, "哈哈哈哈…") must not become one giant token.
_LONGEST_MERGE = 16


def require_file(folder: Path, name: str) -> None:
    """ValueError that names `name` and what `folder` holds instead."""
    if not (folder / name).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no folder"
        raise ValueError(f"{name} is missing (found: {found or 'nothing'}); give a model folder")


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} where there is no such file; ValueError for other content."""
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return content


def read_backend(path: Path) -> tokenizers.Tokenizer:
    """Read a tokenizer.json; ValueError naming the file where the library cannot read it."""
    require_small(path, VOCABULARY)
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
        backend.encode(NOWHERE, add_special_tokens=False)
    except BaseException as error:  # the library raises a bare Exception, and panics at what it doesn't expect
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{path} is not a readable tokenizer.json ({error}); copy it again from where it came from"
        ) from error
    # Its own pipelines may have saved a maximum length; cutting and padding are the caller's business.
    backend.no_truncation()
    backend.no_padding()
    return backend


def bert_backend(folder: Path, options: dict[str, Any]) -> tokenizers.Tokenizer:
    """WordPiece over `vocab.txt`, with the same ids as transformers' BertTokenizer.

    `options` is the content of a Hugging Face tokenizer_config.json (do_lower_case, strip_accents,
    tokenize_chinese_chars), whose defaults hold for what it doesn't say.
    """
    # Not str.splitlines: real vocabularies hold U+2028, which ends no line here.
    lines = read_text(folder / "vocab.txt", VOCABULARY).removesuffix("\n").split("\n")
    vocab = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in vocab]
    if missing:
        raise ValueError(f"{folder / 'vocab.txt'} has no line {' or '.join(missing)}: not a BERT vocabulary")
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    # Adding one that isn't there would give it a new id, for which the model has no row.
    backend.add_special_tokens([token for token in BERT_SPECIAL_TOKENS if token in vocab])
    return backend


def jieba_bpe_backend(folder: Path) -> tokenizers.Tokenizer:
    """ModelScope's tokenizer.json, whose tokens must be plain text; ValueError for bytes in GPT-2's disguise."""
    backend = read_backend(folder / "tokenizer.json")
    if isinstance(backend.decoder, decoders.ByteLevel):
        raise ValueError("tokenizer.json is byte-level BPE, which ModelScope's GPT-3 models don't use")
    return backend


def byte_level_backend(folder: Path, add_prefix_space: bool) -> tokenizers.Tokenizer:
    """GPT-2's vocab.json and merges.txt; ValueError where they are unreadable, or not all there is."""
    for name in ("vocab.json", "merges.txt"):
        require_small(folder / name, VOCABULARY)
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"vocab.json and merges.txt are not readable ({error}); copy them again") from error
    backend = tokenizers.Tokenizer(model)
    if more := read_json_object(folder / "added_tokens.json").keys() - backend.get_vocab().keys():
        raise ValueError(
            f"added_tokens.json adds {', '.join(sorted(more))} to vocab.json; save the tokenizer with transformers 5, "
            "which writes them all into tokenizer.json"
        )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


@functools.cache
def byte_characters() -> dict[str, int]:
    """The characters under which GPT-2's vocabulary spells the 256 bytes (bytes_to_unicode in its encoder.py)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = sorted(set(range(256)) - set(visible))
    return {chr(byte): byte for byte in visible} | {chr(256 + number): byte for number, byte in enumerate(others)}


@functools.cache
def jieba_segmenter() -> Any:
    """A jieba.Tokenizer of our own: jieba.add_word in the same process must not change a model's ids."""
    try:
        import jieba
    except ImportError as error:
        raise ValueError(
            "this model's tokenizer cuts text with jieba, which is not installed: pip install 'moyun[jieba]'"
        ) from error
    jieba.setLogLevel("WARNING")
    segmenter = jieba.Tokenizer()
    segmenter.initialize()
    return segmenter


def why_not_text(texts: Sequence[object]) -> str | None:
    """What is wrong with the first row that cannot be encoded, None if all can."""
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            return f"row {row} (from 0) is not text but {text!r}; fill it in or drop the row"
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"row {row} (from 0): character {error.start} is half a surrogate pair; remove it"
    return None


def token_bytes(backend: tokenizers.Tokenizer, kind: TokenizerKind, leave_out: set[int]) -> dict[int, bytes]:
    """Id → the bytes that it adds to a text (for WordPiece: the piece with its ##), without `leave_out`."""
    byte_fallback = bool(getattr(backend.model, "byte_fallback", False))
    added = backend.get_added_tokens_decoder()
    table = {}
    for token, token_id in backend.get_vocab(with_added_tokens=True).items():
        if token_id in leave_out:
            continue
        if kind == "byte_level_bpe" and token_id not in added:
            table[token_id] = undisguised(token)
        else:
            byte = _BYTE_TOKEN.fullmatch(token) if byte_fallback else None
            table[token_id] = bytes([int(byte[1], 16)]) if byte else token.encode()
    return table


def undisguised(token: str) -> bytes:
    """The bytes of a byte-level token; of one that isn't spelt in byte_characters, its text."""
    table = byte_characters()
    return bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()


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
        rare = {ord(character): " " for character in counts.keys() - set(characters)}
        merges = _learn_merges((text.translate(rare) for text in texts), characters, room, min_frequency)
    return _bpe_backend([END_OF_TEXT, *BYTE_TOKENS, *characters], merges)


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
    if vocab_size < 2 + len(BYTE_TOKENS):
        raise ValueError(
            f"vocab_size ({vocab_size}) must be at least {2 + len(BYTE_TOKENS)}: "
            "end-of-text, 256 bytes and one character"
        )
    if min_frequency < 1:
        raise ValueError(f"min_frequency ({min_frequency}) must be at least 1")


def _learn_merges(texts: Iterable[str], characters: list[str], room: int, min_frequency: int) -> list[tuple[str, str]]:
    """Merges among `characters`; the caller has put a space where another character was.

    The trainer leaves out characters outside its alphabet and would then see their neighbours side by side.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=min_frequency,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        max_token_length=_LONGEST_MERGE,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def _bpe_backend(tokens: list[str], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([END_OF_TEXT])
    return backend
