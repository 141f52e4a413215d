"""Text ↔ token ids: one interface over `tokenizers`. prompt_template.py says what a prompt looks like."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

import tokenizers

from ..system.paths import expanded
from .lookup import CharacterTable, Counts, Ids, end_to_end, standalone
from .pretrained import find_tokenizer
from .prompt_template import TURNS_TEMPLATE, split_template
from .streaming import IncrementalDecoder
from .vocabulary import END_OF_TEXT, TokenizerKind, jieba_segmenter, token_bytes, why_not_text
from .vocabulary_training import extended_backend, train_backend

logger = logging.getLogger("moyun.tokenizer")

# The library keeps about 100 bytes a token alive per batch; a whole corpus at once would not fit.
_BATCH_SIZE = 4096

EXTENSIBLE = ("character", "bpe")
"""Kinds that are trained here, and so can learn more tokens."""


class Tokenizer:
    """Text ↔ ids. Special tokens are ids, never text: "<|endoftext|>" in a text is 13 characters.

    `kind` "character" and "bpe" (trained here) and "byte_level_bpe" (GPT-2's) give back any text exactly; "bert"
    and "jieba_bpe" lose what their vocabularies lack. `start_ids` precede every text, so that its first token is
    predicted too. `prompt_template` is None (the model continues text) or holds one "{src_txt}". `task_templates` are
    those of the tasks that a model was trained on together, by the tasks' names. `source_limit`: the most ids of a
    source, where training cut longer ones: prompts are cut as they were there.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        kind: TokenizerKind,
        end_of_text: str,
        start: Sequence[str],
        prompt_template: str | None = None,
        task_templates: Mapping[str, str] | None = None,
        source_limit: int | None = None,
    ) -> None:
        if kind not in get_args(TokenizerKind):
            raise ValueError(f"unknown tokenizer kind {kind!r}; known: {', '.join(get_args(TokenizerKind))}")
        self.kind = kind
        self._end_of_text, self._start = end_of_text, list(start)
        self._backend = backend
        backend.encode_special_tokens = True
        vocab = backend.get_vocab(with_added_tokens=True)
        missing = [token for token in (end_of_text, *start) if token not in vocab]
        if missing:
            raise ValueError(f"the tokenizer's vocabulary has no token {', '.join(map(repr, missing))}")
        self.vocab_size = max(vocab.values()) + 1
        """Number of ids, gaps included: the largest id + 1."""
        self.end_of_text_id = vocab[end_of_text]
        self.start_ids = [vocab[token] for token in start]
        added = backend.get_added_tokens_decoder()
        special_ids = {token_id for token_id, token in added.items() if token.special}
        self.token_bytes = token_bytes(backend, kind, special_ids | {self.end_of_text_id, *self.start_ids})
        """Id → what it adds to a text; an id that adds nothing is not in it."""
        # One look-up a character is six times faster than the library's BPE and gives the same ids.
        self._character_ids = {token: vocab[token] for token in vocab if len(token) == 1}
        self.prompt_template, self.source_limit = prompt_template, source_limit
        self.task_templates = dict(task_templates or {})
        for each in self.task_templates.values():
            split_template(each)
        before, after = split_template(prompt_template)
        self.prompt_parts = [*self.start_ids, *self.encode(before)], self.encode(after)
        """The ids before and after src_txt in a prompt."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True  # the library's pickle forgets it

    def with_prompt_template(self, template: str | None, task_templates: Mapping[str, str] | None = None) -> Tokenizer:
        """A copy that makes its prompts with `template`, and those of tasks with theirs. With another template nothing
        is known of how training cut."""
        if template == self.prompt_template and dict(task_templates or {}) == self.task_templates:
            return self
        return Tokenizer(self._backend, self.kind, self._end_of_text, self._start, template, task_templates)

    def with_source_limit(self, limit: int | None) -> Tokenizer:
        """A copy whose prompts have so many ids of a source at most."""
        prompts = self.prompt_template, self.task_templates, limit
        return Tokenizer(self._backend, self.kind, self._end_of_text, self._start, *prompts)

    def extended(self, texts: Iterable[str], new_tokens: int, min_frequency: int) -> Tokenizer:
        """A copy with up to `new_tokens` ids more, for what of these texts occurs at least `min_frequency` times: the
        characters that it lacks, then merges. What has an id keeps it. ValueError for a kind that isn't trained here,
        and where the texts hold nothing new."""
        if self.kind not in EXTENSIBLE:
            raise ValueError(f"a {self.kind} tokenizer can't be extended; {' and '.join(EXTENSIBLE)} can")
        backend = extended_backend(self._backend, texts, new_tokens, min_frequency)
        if backend.get_vocab_size() == self._backend.get_vocab_size():
            raise ValueError(f"the texts hold nothing new that occurs {min_frequency} times; lower min_frequency")
        prompts = self.prompt_template, self.task_templates
        return Tokenizer(backend, "bpe", self._end_of_text, self._start, *prompts)

    @functools.cached_property
    def for_conversations(self) -> Tokenizer:
        """The tokenizer that asks what is said in a conversation: this one, or, of a model that continues text and was
        trained on questions with their answers among other tasks, one with their template."""
        if self.prompt_template is None and TURNS_TEMPLATE in self.task_templates.values():
            return self.with_prompt_template(TURNS_TEMPLATE, self.task_templates)
        return self

    def answers(self, prompt: Sequence[int]) -> bool:
        """Whether what follows these ids is a text of its own; else it goes on with theirs."""
        if self.for_conversations is self:
            return self.prompt_template is not None
        before, after = self.for_conversations.prompt_parts
        return [*prompt[: len(before)]] == before and [*prompt[-len(after) :]] == after

    def template_for(self, names: Iterable[str | None]) -> str | None:
        """The template of the first of these tasks or data sets that the model was trained on, else its only one."""
        known = (self.task_templates[name] for name in names if name in self.task_templates)
        return next(known, self.prompt_template)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides which ids a row becomes, the prompt template included.

        Compare `with_prompt_template(None).fingerprint` to ask whether two vocabularies are the same.
        """
        backend = json.loads(self._backend.to_str())
        content = {part: backend[part] for part in ("model", "normalizer", "pre_tokenizer")}
        content["config"] = self._config()
        vocab = self._backend.get_vocab(with_added_tokens=False)
        # Cut out of a text before all else, or of another id than the model's own vocabulary says.
        if added := [t for t in backend["added_tokens"] if not t["special"] or vocab.get(t["content"]) != t["id"]]:
            content["added_tokens"] = added
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of the text alone, without start or end."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, much faster than one by one; ValueError naming a row that isn't text."""
        try:
            if self.kind == "character":
                return [self._encode_characters(text) for text in texts]
            batches = (texts[row : row + _BATCH_SIZE] for row in range(0, len(texts), _BATCH_SIZE))
            return [ids for batch in batches for ids in self._encode_with_backend(batch)]
        except (TypeError, AttributeError) as error:
            if reason := why_not_text(texts):
                raise ValueError(reason) from error
            raise

    def encode_flat(self, texts: Sequence[str]) -> tuple[Ids, Counts]:
        """`encode_batch` as (ids of all texts end to end, ids of each text); faster where characters are tokens."""
        return end_to_end(self.encode_batch(texts)) if self._table is None else self._table(texts)

    @functools.cached_property
    def _table(self) -> CharacterTable | None:
        if self.kind == "character":
            return CharacterTable(self._character_ids, self.encode_batch)
        if self.kind == "bert":
            return CharacterTable(self._standalone, self.encode_batch)
        return None

    @functools.cached_property
    def _standalone(self) -> dict[str, int]:
        return standalone(self._character_ids, self.encode_batch) if self.kind == "bert" else {}

    @property
    def is_lossless(self) -> bool:
        """Whether any text comes back exactly, since what has no token is spelt in bytes."""
        return self.kind not in ("bert", "jieba_bpe")

    @functools.cached_property
    def own_tokens(self) -> frozenset[str]:
        """Characters that come back wherever they stand: not all of them, but those that are quickly known."""
        return frozenset(self._standalone)

    def _encode_characters(self, text: str) -> list[int]:
        ids = list(map(self._character_ids.get, text))
        if None in ids:
            return self._encode_with_backend([text])[0]
        return ids  # type: ignore[return-value]

    def _encode_with_backend(self, texts: Sequence[str]) -> list[list[int]]:
        cut = self.kind == "jieba_bpe"
        inputs = [list(jieba_segmenter().cut(text)) for text in texts] if cut else list(texts)
        encodings = self._backend.encode_batch_fast(inputs, is_pretokenized=cut, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def positions(self, text: str) -> list[int] | None:
        """At which character of a text each of its ids begins; None where decoding them tells it."""
        if self.is_lossless:
            return None
        if self.kind == "bert":
            return [start for start, _ in self._backend.encode(text, add_special_tokens=False).offsets]
        words = list(jieba_segmenter().cut(text))
        starts = [0, *accumulate(map(len, words))]
        encoding = self._backend.encode(words, is_pretokenized=True, add_special_tokens=False)
        return [starts[word or 0] + at for word, (at, _) in zip(encoding.word_ids, encoding.offsets, strict=True)]

    def token(self, token_id: int) -> str:
        """How the vocabulary spells a token; an id without one as vLLM does, token_id:5."""
        return self._backend.id_to_token(token_id) or f"token_id:{token_id}"

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special ids, and ids without a token (a checkpoint's padding rows), add nothing."""
        decoder = self.incremental_decoder()
        return "".join([decoder.push(token_id) for token_id in ids]) + decoder.flush()

    def incremental_decoder(self) -> IncrementalDecoder:
        """`decode` for ids that come one by one."""
        return IncrementalDecoder(self.token_bytes, is_wordpiece=self.kind == "bert")

    def encode_prompt(self, src_txt: str, limit: int | None = None) -> list[int]:
        """What the model sees before it writes: start ids, then the template around `src_txt`.

        `src_txt` is cut at its end so that the whole has at most `limit` ids. ValueError where nothing of it is left.
        """
        source, (before, after) = self.as_trained(self.encode(src_txt)), self.prompt_parts
        if limit is not None:
            overhead = len(before) + len(after)
            if limit - overhead < min(1, len(source)):
                raise ValueError(
                    f"limit ({limit}) leaves no room for the text: start and prompt template alone take "
                    f"{overhead} tokens; raise the limit or shorten the template"
                )
            source = source[: limit - overhead]
        return [*before, *source, *after]

    def as_trained(self, source: list[int]) -> list[int]:
        """A source's ids, without its end where training would have cut it (`source_limit`)."""
        if self.source_limit is not None and len(source) > self.source_limit:
            say_cut(self.source_limit)
        return source[: self.source_limit]

    def smallest_limit(self, pairs: bool) -> int:
        """The fewest ids that a row may be cut to: start, template, text and one more."""
        return sum(map(len, self.prompt_parts)) + 2 if pairs else max(1, len(self.start_ids)) + 1

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `load_tokenizer` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps(self._config(), ensure_ascii=False, indent=2)
        (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")

    def _config(self) -> dict[str, Any]:
        config = {
            "kind": self.kind,
            "end_of_text": self._end_of_text,
            "start": self._start,
            "prompt_template": self.prompt_template,
            **({"task_templates": self.task_templates} if self.task_templates else {}),
        }
        return config if self.source_limit is None else config | {"source_limit": self.source_limit}


@functools.cache
def say_cut(limit: int) -> None:
    """Once a process."""
    logger.warning("prompts of more than %d tokens of text are cut at their end, as they were in this training", limit)


def train_tokenizer(
    texts: Iterable[str],
    kind: Literal["character", "bpe"] = "character",
    vocab_size: int = 16384,
    min_frequency: int = 2,
) -> Tokenizer:
    """A tokenizer for `texts` that gives back any text exactly: what it has no token for becomes bytes.

    Ids: end-of-text 0, 256 bytes, then the characters seen at least `min_frequency` times, most frequent
    first, up to `vocab_size` ids. "bpe" fills the rest with merges that cross no space or punctuation.
    The same texts, in any order, give the same tokenizer. ValueError for arguments that make no tokenizer.
    """
    backend = train_backend(texts, kind, vocab_size, min_frequency)
    return Tokenizer(backend, kind, END_OF_TEXT, [END_OF_TEXT])


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read a folder written by `Tokenizer.save`, or the tokenizer of a ModelScope or Hugging Face checkpoint.

    ModelScope: base and large hold a BERT vocab.txt; from 1.3B up (a `megatron` key in configuration.json)
    a tokenizer.json for words cut by jieba. Hugging Face: BERT's WordPiece, or byte-level BPE, which starts a text
    with its bos_token and ends it with its eos_token. ValueError naming the folder and what it lacks.
    """
    folder = Path(expanded(str(folder)))
    try:
        return Tokenizer(*find_tokenizer(folder))
    except KeyError as error:
        raise ValueError(f"{folder / 'tokenizer_config.json'} has no key {error}; save it again") from error
    except (TypeError, AttributeError) as error:  # wherever another type stands in somebody's JSON than belongs there
        raise ValueError(f"no tokenizer in {folder}: its files hold what doesn't belong there ({error})") from error
    except ValueError as error:
        raise ValueError(f"no tokenizer in {folder}: {error}") from error
