"""Our tokenizers in the files that transformers' AutoTokenizer reads, giving the same ids and texts."""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, processors

from ...config.model import ModelConfig
from ...system.atomic import write_json
from ...system.bounded_read import read_json_object
from ...tokenizer.pretrained import OWN_FOLDER, SEAM, for_export, read_backend
from ...tokenizer.streaming import NO_SPACE_AFTER, NO_SPACE_BEFORE, is_wide
from ...tokenizer.tokenizer import Tokenizer
from .chat_template import chat_template


def write_huggingface_tokenizer(
    folder: Path, tokenizer: Tokenizer, model: ModelConfig
) -> tuple[dict[str, int | None], list[str]]:
    """Returns the ids of bos, eos and pad for config.json, and notes for whoever exports.

    Our own keys stay in tokenizer_config.json, so that `load_tokenizer` gives back the same tokenizer.
    """
    start, end = tokenizer.start_ids, tokenizer.end_of_text_id
    ids: dict[str, int | None] = {"bos_token_id": start[0] if start else None, "eos_token_id": end}
    if tokenizer.kind == "jieba_bpe":
        tokenizer.save(folder / OWN_FOLDER)
        # A class that doesn't exist: for a folder without one AutoTokenizer makes an empty GPT-2 tokenizer.
        options = {"tokenizer_class": "MoyunJiebaTokenizer", "model_max_length": model.max_position_embeddings}
        write_json(folder / "tokenizer_config.json", options)
        notes = told_of_template(tokenizer, "transformers and vLLM don't apply it: write prompts out with it there")
        notes.append(
            f"transformers has no tokenizer that cuts words with jieba, so AutoTokenizer refuses the folder: moyun's "
            f"is in {OWN_FOLDER}/; encode with moyun and hand over ids"
        )
        return ids | {"pad_token_id": end}, notes
    tokenizer.save(folder)
    backend = read_backend(folder)
    own = read_json_object(folder / "tokenizer_config.json")
    add_start(backend, own["start"])
    if tokenizer.kind == "bert":
        backend.decoder = wordpiece_decoder()
    tokens, options = special_tokens(backend, own), OPTIONS | {"model_max_length": model.max_position_embeddings}
    said_in, seam = tokenizer.for_conversations.prompt_template, SEAMS.get(tokenizer.kind, "")
    backend = for_export(backend, model.vocab_size or 0, said_in is not None and seam == SEAM)
    if said_in is not None:
        # A chat template can write the start and end of texts only as text that is read as tokens.
        template = chat_template(said_in, "".join(own["start"]), own["end_of_text"], seam)
        options |= {"split_special_tokens": False, "chat_template": template}
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", own | tokens | options)
    applied = "tokenizer.apply_chat_template applies it in transformers and vLLM, tokenizer(text) doesn't"
    return ids | {"pad_token_id": backend.token_to_id(tokens["pad_token"])}, told_of_template(tokenizer, applied)


def told_of_template(tokenizer: Tokenizer, what: str) -> list[str]:
    template = tokenizer.for_conversations.prompt_template
    return [] if template is None else [f"the prompt template {template!r} is kept for moyun; {what}"]


SEAMS = {"bpe": SEAM, "byte_level_bpe": SEAM, "bert": " "}
"""Kind of tokenizer → what keeps a template's parts apart, where merges could cross; BERT's drops spaces."""


OPTIONS = {
    "tokenizer_class": "PreTrainedTokenizerFast",  # both transformers 4 and 5 know it
    "split_special_tokens": True,  # "<|endoftext|>" in a text is text
    "clean_up_tokenization_spaces": False,
    "padding_side": "left",
    "model_input_names": ["input_ids", "attention_mask"],  # token_type_ids would be added to GPT-2's embeddings
}


def special_tokens(backend: tokenizers.Tokenizer, own: dict[str, Any]) -> dict[str, str]:
    """bos, eos, pad and unk by transformers' names; end-of-text stands for those that a vocabulary lacks.

    CTranslate2 needs one for unknown tokens, also where there never are any.
    """
    tokens = dict.fromkeys(("eos_token", "pad_token", "unk_token"), own["end_of_text"])
    if own["start"]:
        tokens["bos_token"] = own["start"][0]
    if own["kind"] == "bert":
        tokens["unk_token"] = backend.model.unk_token
        if backend.token_to_id("[PAD]") is not None:
            tokens["pad_token"] = "[PAD]"
    return tokens


def add_start(backend: tokenizers.Tokenizer, start: list[str]) -> None:
    """Every text begins with the start tokens; none ends, as it is a prompt."""
    text = " ".join([*start, "$A"])
    backend.post_processor = processors.TemplateProcessing(
        single=text, pair=f"{text} $B", special_tokens=[(token, backend.token_to_id(token)) for token in start]
    )


def wordpiece_decoder() -> decoders.Decoder:
    """IncrementalDecoder's joining of words as a decoder of the library, which would part all Chinese characters."""
    wide = "".join(
        f"\\x{{{group[0]:X}}}-\\x{{{group[-1]:X}}}"
        for is_so, codes in groupby(range(0x80, sys.maxunicode + 1), lambda code: is_wide(chr(code)))
        if is_so and (group := list(codes))
    )
    after, before = (re.escape("".join(sorted(signs))) for signs in (NO_SPACE_AFTER, NO_SPACE_BEFORE))
    left, right = f"[{wide}{after}\\p{{Ps}}\\p{{Pi}}]", f"[{wide}{before}\\p{{Pe}}\\p{{Pf}}]"
    return decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(tokenizers.Regex("^##(?=\\S)"), ""),  # the library leaves it on a first piece
            decoders.Replace(tokenizers.Regex(f"(?<={left}) | (?={right})"), ""),
        ]
    )
