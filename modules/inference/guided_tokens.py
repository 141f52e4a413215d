"""The tokens that keep to a JSON schema or a regular expression: llguidance's masks over a tokenizer's vocabulary."""

from __future__ import annotations

import functools
import logging
import weakref
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..config.guided.grammar import compiled
from ..tokenizer.tokenizer import Tokenizer

logger = logging.getLogger("moyun.generation")

KINDS = {"bert": "BERT's WordPiece", "jieba_bpe": "jieba's words"}
"""Tokenizer.kind → its name, of those that don't give back any text."""

NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}
"""Bytes that no text has in UTF-8."""

KEPT = 64
"""Schemas and expressions that stay compiled, of each tokenizer."""


class Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = range(tokenizer.vocab_size)
        self.special_token_ids = [token for token in ids if not tokenizer.token_bytes.get(token)]
        """They are never written, but for the end of the text."""
        self.tokens = [tokenizer.token_bytes.get(token) or f"<{token}>".encode() for token in ids]
        self.eos_token_id, self.bos_token_id = tokenizer.end_of_text_id, None
        self.tokenizer = weakref.ref(tokenizer)
        self.greedy: Any = None
        """LLTokenizer.greedy_tokenize, once there is one."""

    def __call__(self, text: str) -> list[int]:
        """The tokens of what comes next where just one text can: those that the model knows it by."""
        text.encode()  # llguidance tries whether bytes are taken
        if tokenizer := self.tokenizer():
            ids = tokenizer.encode(text)
            if b"".join(tokenizer.token_bytes.get(token, b"") for token in ids) == text.encode():
                return ids
        return list(self.greedy(text))


class GuidedTokens:
    """A tokenizer as llguidance has it, and what was compiled for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """ValueError where the tokenizer can't write every text."""
        from llguidance import LLTokenizer, TokenizerWrapper

        single = {piece[0] for piece in tokenizer.token_bytes.values() if len(piece) == 1}
        if set(range(256)) - single - NEVER:
            raise ValueError(
                f"can't be kept with this model's tokenizer ({KINDS.get(tokenizer.kind, tokenizer.kind)}): it can't "
                "write every text, as it has no tokens for single bytes"
            )
        vocabulary = Vocabulary(tokenizer)
        self.tokenizer = LLTokenizer(TokenizerWrapper(vocabulary))
        vocabulary.greedy = self.tokenizer.greedy_tokenize
        self.size, self.end_of_text_id = tokenizer.vocab_size, tokenizer.end_of_text_id
        self.matcher = functools.lru_cache(KEPT)(self._matcher)

    def _matcher(self, key: str, text: str) -> Any:
        try:
            return compiled(self.tokenizer, key, text)
        except ValueError as error:
            raise ValueError(f"can't be kept: {str(error).splitlines()[0]}") from None


@dataclass
class GuidedText:
    """One text that is written."""

    tokens: GuidedTokens
    key: str
    given_up: bool = False
    """Whether it got too complex for llguidance, and was broken off."""


@dataclass(frozen=True, eq=False)
class GuidedConstraint:
    """A sampling.Constraint: a grammar at one place of a text."""

    text: GuidedText
    matcher: Any = field(repr=False)
    """llguidance's LLMatcher at this place."""

    @functools.cached_property
    def allowed(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        if self.matcher.is_error() and not self.text.given_up:
            reason = self.matcher.get_error().splitlines()[0]
            logger.warning("a text was broken off: its %s got too complex for llguidance (%s)", self.text.key, reason)
            self.text.given_up = True
        found = np.unpackbits(bits, bitorder="little", count=self.text.tokens.size).view(np.bool_)
        if self.text.given_up:
            found = np.zeros_like(found)
            found[self.text.tokens.end_of_text_id] = True
        return found

    @property
    def given_up(self) -> bool:
        return self.text.given_up

    def after(self, token: int) -> GuidedConstraint:
        matcher = self.matcher.deep_copy()
        matcher.consume_token(token)
        return GuidedConstraint(self.text, matcher)


MADE: WeakKeyDictionary[Tokenizer, GuidedTokens] = WeakKeyDictionary()


def guided_constraint(tokenizer: Tokenizer, key: str, text: str) -> GuidedConstraint:
    """What a text that is to be written keeps to. ValueError, which begins with the key, where the tokenizer can't."""
    try:
        if tokenizer not in MADE:
            MADE[tokenizer] = GuidedTokens(tokenizer)
        tokens = MADE[tokenizer]
        return GuidedConstraint(GuidedText(tokens, key), tokens.matcher(key, text).deep_copy())
    except ValueError as error:
        raise ValueError(f"{key} {error}") from None
