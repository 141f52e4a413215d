"""Which tokenizer a folder holds: moyun's own, ModelScope's, BERT's, or byte-level BPE as GPT-2 has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from ..system.bounded_read import VOCABULARY, read_json_object, read_text, require_file, require_small
from .vocabulary import BERT_SPECIAL_TOKENS, TokenizerKind, byte_characters

NOWHERE = "\U0010fffe"
"""A character that no vocabulary knows: some can be read, and fail only when they have to encode one."""


SEAM = "\U0010ffff"
"""Where encoding begins anew in an exported tokenizer; a code point that is never assigned."""
AT_SEAMS = {"type": "Split", "pattern": {"String": SEAM}, "behavior": "Removed", "invert": False}


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """The folder's tokenizer.json. Raises ValueError naming it where it is missing or the library can't read it."""
    require_file(folder, "tokenizer.json")
    path = folder / "tokenizer.json"
    require_small(path, VOCABULARY)
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
        backend.encode(NOWHERE, add_special_tokens=False)
    except BaseException as error:  # the library raises a bare Exception, and panics at what it doesn't expect
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{path} is not a readable tokenizer.json ({error}); copy it again") from error
    # Its own pipelines may have saved a maximum length; cutting and padding are the caller's business.
    backend.no_truncation()
    backend.no_padding()
    return backend


def for_export(backend: tokenizers.Tokenizer, size: int, seams: bool) -> tokenizers.Tokenizer:
    """A copy in which each of `size` ids has a token, as other tools count them; no text becomes one of the new ones.

    seams: texts are cut at SEAM first; it is left out, and nothing is merged across it.
    """
    content = json.loads(backend.to_str())
    known, vocab = set(backend.get_vocab(with_added_tokens=True).values()), content["model"]["vocab"]
    options = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for number in sorted(set(range(size)) - known):
        vocab[unused(number)] = number
        content["added_tokens"].append({"id": number, "content": unused(number), **options})
    content["added_tokens"].sort(key=lambda token: token["id"])
    if seams:
        parts = [AT_SEAMS, *([content["pre_tokenizer"]] if content["pre_tokenizer"] else [])]
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def unused(number: int) -> str:
    return f"[no token {number}]"


def before_export(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """What `for_export` was given."""
    content = json.loads(backend.to_str())
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {token: number for token, number in vocab.items() if token != unused(number)}
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != unused(t["id"])]
    first, *rest = (content["pre_tokenizer"] or {}).get("pretokenizers", [None])
    if first == AT_SEAMS:
        content["pre_tokenizer"] = rest[0] if rest else None
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def bert_backend(folder: Path, options: dict[str, Any]) -> tokenizers.Tokenizer:
    """WordPiece over `vocab.txt`, with the same ids as transformers' BertTokenizer.

    `options` is the content of a Hugging Face tokenizer_config.json (do_lower_case, strip_accents,
    tokenize_chinese_chars), whose defaults hold for what it doesn't say.
    """
    # Not str.splitlines: real vocabularies hold U+2028, which ends no line here.
    lines = read_text(folder / "vocab.txt", VOCABULARY).removesuffix("\n").split("\n")
    vocab = {line: number for number, line in enumerate(lines)}
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


def byte_level_backend(folder: Path, add_prefix_space: bool) -> tokenizers.Tokenizer:
    """GPT-2's vocab.json and merges.txt. Raises ValueError where they can't be read, or another file adds tokens."""
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


OWN_FOLDER = "moyun_tokenizer"
"""Where an exported model keeps a tokenizer that transformers can't express."""

SUPPORTED = "supported: moyun's own, BERT's WordPiece, GPT-2's byte-level BPE, ModelScope's jieba and BPE"


class FoundTokenizer(NamedTuple):
    """The arguments of `Tokenizer`."""

    backend: tokenizers.Tokenizer
    kind: TokenizerKind
    end_of_text: str
    start: list[str]
    prompt_template: str | None = None
    task_templates: Mapping[str, str] | None = None
    source_limit: int | None = None


def find_tokenizer(folder: Path) -> FoundTokenizer:
    """Raises ValueError naming what the folder lacks or holds instead, KeyError for a key that our own file lacks."""
    config = read_json_object(folder / "tokenizer_config.json")
    if "kind" in config:
        limit = config.get("source_limit")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ValueError(f"tokenizer_config.json: source_limit ({limit!r}) must be a number of tokens, 1 or more")
        own = (
            config["kind"],
            config["end_of_text"],
            config["start"],
            config.get("prompt_template"),
            config.get("task_templates"),
        )
        backend = read_backend(folder)
        return FoundTokenizer(before_export(backend) if "tokenizer_class" in config else backend, *own, limit)
    if (folder / OWN_FOLDER).is_dir():
        return find_tokenizer(folder / OWN_FOLDER)
    if "megatron" in read_json_object(folder / "configuration.json"):
        backend = read_backend(folder)
        if isinstance(backend.decoder, decoders.ByteLevel):
            raise ValueError("tokenizer.json is byte-level BPE, which ModelScope's GPT-3 models don't use")
        # ModelScope ends every training row with <sep> and cuts generated text at it; <|endoftext|>,
        # its eod_id, only pads rows and is never trained on. There is no start token.
        return FoundTokenizer(backend, "jieba_bpe", "<sep>", [])
    return hugging_face_tokenizer(folder, config)


def hugging_face_tokenizer(folder: Path, config: dict[str, Any]) -> FoundTokenizer:
    """BERT's by its class or by vocab.txt alone, else what tokenizer.json, or vocab.json with merges.txt, turns out."""
    name = config.get("tokenizer_class") or read_json_object(folder / "config.json").get("tokenizer_class")
    has_json = (folder / "tokenizer.json").is_file()
    if (folder / "vocab.txt").is_file() and (not has_json or str(name).removesuffix("Fast") == "BertTokenizer"):
        return FoundTokenizer(bert_backend(folder, config), "bert", "[SEP]", ["[CLS]"])
    if has_json:
        backend = read_backend(folder)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = byte_level_backend(folder, bool(config.get("add_prefix_space", False)))
    elif (folder / "tokenizer.model").is_file() or (folder / "spiece.model").is_file():
        raise ValueError(f"it is a SentencePiece model; {SUPPORTED}")
    else:
        require_file(folder, "vocab.txt")
    content = json.loads(backend.to_str())
    if content["model"]["type"] == "WordPiece" and content["model"]["continuing_subword_prefix"] == "##":
        vocab = backend.get_vocab()
        backend.add_special_tokens([token for token in BERT_SPECIAL_TOKENS if token in vocab])
        return FoundTokenizer(backend, "bert", "[SEP]", ["[CLS]"])
    if reason := why_not_byte_level(content):
        raise ValueError(f"its tokenizer ({name or 'no tokenizer_class given'}) {reason}; {SUPPORTED}")
    end, start = end_and_start(folder, config, backend)
    # What ends or starts a text must never be read out of one; a token that isn't there would get a new id.
    backend.add_special_tokens([token for token in (end, *start) if backend.token_to_id(token) is not None])
    return FoundTokenizer(backend, "byte_level_bpe", end, start)


def why_not_byte_level(content: dict[str, Any]) -> str | None:
    """What keeps a tokenizer.json from being byte-level BPE that gives back any text exactly; None: nothing."""
    model, cutter, normalizer = content["model"], content["pre_tokenizer"] or {}, content["normalizer"]
    parts = cutter.get("pretokenizers", [cutter])
    if model["type"] != "BPE":
        return f"is a {model['type']} model"
    if (content["decoder"] or {}).get("type") != "ByteLevel" or parts[-1].get("type") != "ByteLevel":
        return "is BPE, but not over bytes"
    if any(part["type"] != "Split" or part["behavior"] == "Removed" for part in parts[:-1]):
        return f"cuts texts in a way that may lose some of them ({', '.join(part['type'] for part in parts)})"
    if parts[-1]["add_prefix_space"]:
        return "puts a space before every text (add_prefix_space), which would not come back"
    if normalizer and normalizer.get("normalizers") != []:
        return f"changes texts before it encodes them ({normalizer['type']}), so they would not come back"
    if missing := byte_characters().keys() - model["vocab"].keys():
        return f"has no token for {len(missing)} of the 256 bytes"
    if model["dropout"]:
        return "drops merges at random (dropout)"
    return None


def end_and_start(folder: Path, config: dict[str, Any], backend: tokenizers.Tokenizer) -> tuple[str, list[str]]:
    """End-of-text, and the token before every text ([] for none), from the first file that names an end.

    Files: tokenizer_config.json, special_tokens_map.json, then config.json by id. GPT-2's own bos_token is
    <|endoftext|>, so its texts start with it, as they did in its training.
    """
    for source in (config, read_json_object(folder / "special_tokens_map.json")):
        end, start = token_name(source.get("eos_token")), token_name(source.get("bos_token"))
        if end:
            return end, [start] if start else []
    model = read_json_object(folder / "config.json")
    end, start = token_of_id(backend, model.get("eos_token_id")), token_of_id(backend, model.get("bos_token_id"))
    if end is None:
        raise ValueError("no end of text: name it as eos_token in tokenizer_config.json")
    return end, [start] if start else []


def token_name(value: Any) -> str | None:
    """Hugging Face writes a token as a string or as an object with options."""
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) else None


def token_of_id(backend: tokenizers.Tokenizer, value: Any) -> str | None:
    first = value[0] if isinstance(value, list) and value else value
    return backend.id_to_token(first) if isinstance(first, int) and first >= 0 else None
