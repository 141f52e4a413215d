"""Conversations → token ids: each a document in which the assistant's answers, with their ends, are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...tokenizer.lookup import end_to_end
from ...tokenizer.lost_text import lost_in_texts
from ...tokenizer.prompt_template import Turn, fit_turns, ids_of, turns_of_ids, with_system
from ...tokenizer.tokenizer import Tokenizer
from .message_rows import stored_messages


def encode_conversations(stored: Sequence[str], tokenizer: Tokenizer, limit: int) -> dict[str, Any]:
    """The fields of an EncodedBatch, of which a document a conversation of at most `limit` ids is made.

    stored: as checked rows hold them, all ending with an answer.
    """
    talks = list(map(stored_messages, stored))
    told = [[message.text for message in with_system(talk)] for talk in talks]
    texts = [text for talk in told for text in talk]
    ids = tokenizer.encode_batch(texts)
    lost_of_text, lost = lost_in_texts(texts, *end_to_end(ids), tokenizer)
    documents: list[list[Turn]] = []
    found: dict[str, list[int]] = {"characters": [], "ended": [], "lost_bytes": []}
    cut = tokens_cut = at = 0
    for talk, said in zip(talks, told, strict=True):
        whole = turns_of_ids(ids[at : at + len(said)], tokenizer)
        turns = fit_turns(talk, tokenizer, limit) if (size := len(ids_of(whole))) > limit else whole
        cut, tokens_cut = cut + (turns is not whole), tokens_cut + size - len(ids_of(turns))
        documents.append(turns)
        kept = said[1::2][-len(turns) :], lost_of_text[at + 1 : at + len(said) : 2][-len(turns) :]
        for name, count in count_trained(turns, *kept, len(whole[-1].answer), tokenizer).items():
            found[name].append(count)
        at += len(said)
    flat = [ids_of(turns) for turns in documents]
    small = tokenizer.vocab_size <= np.iinfo(np.uint16).max
    return {
        "ids": end_to_end(flat)[0].astype(np.uint16 if small else np.int32),
        "lengths": np.array(list(map(len, flat)), np.int64),
        "prompt_lengths": np.array([max(1, len(turns[0].prompt)) for turns in documents], np.int32),
        "later_prompts": later_prompts(documents),
        **{name: np.array(counts, np.int32) for name, counts in found.items()},
        "rows_cut": cut,
        "rows_split": 0,
        "tokens_cut": tokens_cut,
        "text_characters": sum(map(len, texts)),
        "lost": lost,
    }


def count_trained(
    turns: Sequence[Turn], answers: Sequence[str], lost_of_answer: np.ndarray, last: int, tokenizer: Tokenizer
) -> dict[str, int]:
    """What the trained ids of a document spell, and don't. last: ids of the last answer, uncut."""
    characters = sum(map(len, answers))
    lost = int(lost_of_answer.sum())
    cut = len(turns[-1].answer) < last
    if cut:
        characters -= len(answers[-1]) - len(tokenizer.decode(turns[-1].answer))
        lost -= int(lost_of_answer[-1]) - int(lost_of_answer[-1]) * len(turns[-1].answer) // last
    if not turns[0].prompt:  # nothing predicts the first id
        first = turns[0].answer
        characters -= len(tokenizer.decode(first)) - len(tokenizer.decode(first[1:]))
    return {"characters": characters, "ended": len(turns) - cut, "lost_bytes": lost}


def later_prompts(documents: Sequence[Sequence[Turn]]) -> np.ndarray:
    """Where the prompts of all turns but each document's first begin and end among the ids, end to end."""
    found, at = [], 0
    for turns in documents:
        for number, (prompt, answer) in enumerate(turns):
            found += [at, at + len(prompt)] if number else []
            at += len(prompt) + len(answer)
    return np.array(found, np.int64)
