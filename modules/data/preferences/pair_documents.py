"""Preference rows → documents two by two: the prompt with its chosen answer, and with its rejected one.

Of both the answer alone is trained on, and both have the same prompt to the last id: where it has to be cut, it is cut
for the longer answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...tokenizer.lookup import end_to_end
from ...tokenizer.lost_text import lost_in_texts
from ...tokenizer.prompt_template import Message, encode_turns, fit_prompt, ids_of, prompt_limit, with_system
from ...tokenizer.tokenizer import Tokenizer
from ..conversations.message_rows import stored_messages


class Fitted(NamedTuple):
    """Ids of a row that fit into a document."""

    prompt: list[int]
    answers: list[list[int]]
    """Chosen and rejected, each with end-of-text unless it is cut."""
    lost: int
    """Ids that its two documents lack."""


def fit_pair(asked: Sequence[Message], both: Sequence[list[int]], tokenizer: Tokenizer, limit: int) -> Fitted:
    """asked: the messages up to the last question. both: the answers' ids, with end-of-text."""
    prompt = ids_of(encode_turns(with_system(asked), tokenizer))
    longest, size = max(map(len, both)), len(prompt)
    if size + longest > limit:
        most = prompt_limit(limit, longest, sum(map(len, tokenizer.prompt_parts)))
        prompt, _ = fit_prompt(asked, tokenizer, most)
    answers = [answer[: limit - len(prompt)] for answer in both]
    return Fitted(prompt, answers, 2 * (size - len(prompt)) + sum(map(len, both)) - sum(map(len, answers)))


def encode_pairs(batch: Mapping[str, Sequence[str]], tokenizer: Tokenizer, limit: int) -> dict[str, Any]:
    """The fields of an EncodedBatch: of each row two documents of at most `limit` ids, the chosen one first."""
    prompts = [stored_messages(talk)[:-1] for talk in batch["messages"]]
    texts = [text for pair in zip(batch["tgt_txt"], batch["rejected"], strict=True) for text in pair]
    ids = tokenizer.encode_batch(texts)
    lost_bytes, lost = lost_in_texts(texts, *end_to_end(ids), tokenizer)
    whole = [[*answer, tokenizer.end_of_text_id] for answer in ids]
    rows = [fit_pair(asked, whole[2 * row : 2 * row + 2], tokenizer, limit) for row, asked in enumerate(prompts)]
    kept = [answer for row in rows for answer in row.answers]
    documents = [[*row.prompt, *answer] for row in rows for answer in row.answers]
    sizes, all_of_it = np.array(list(map(len, kept))), np.array(list(map(len, whole)))
    characters = [
        len(text) if len(answer) == size else len(tokenizer.decode(answer))
        for text, answer, size in zip(texts, kept, all_of_it, strict=True)
    ]
    small = tokenizer.vocab_size <= np.iinfo(np.uint16).max
    return {
        "ids": end_to_end(documents)[0].astype(np.uint16 if small else np.int32),
        "lengths": np.array(list(map(len, documents)), np.int64),
        "prompt_lengths": np.array([max(1, len(row.prompt)) for row in rows], np.int32).repeat(2),
        "characters": np.array(characters, np.int32),
        "ended": (sizes == all_of_it).astype(np.int32),
        "lost_bytes": (lost_bytes * sizes // all_of_it).astype(np.int32),
        "rows_cut": sum(row.lost > 0 for row in rows),
        "rows_split": 0,
        "tokens_cut": sum(row.lost for row in rows),
        "text_characters": sum(map(len, texts)) + sum(len(m.text) for asked in prompts for m in asked),
        "lost": lost,
    }
